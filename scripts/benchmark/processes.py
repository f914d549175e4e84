"""Servers in processes of their own, reachable through Unix sockets in a temporary folder."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from scripts.benchmark import bare
from services.echo.v1.echo_toolkit import EchoClient
from toolkit.connect import connect

ECHO = ["toolkit.replica", "services.echo.service:Echo", "--listen"]


@asynccontextmanager
async def ours(**environ: str) -> AsyncIterator[EchoClient]:
    """The echo service as a replica, through its handle."""
    async with server(*ECHO, **environ) as address, connect(EchoClient, address, max_message_bytes=bare.LIMIT) as echo:
        yield echo


@asynccontextmanager
async def theirs(**environ: str) -> AsyncIterator[grpc.aio.Channel]:
    """The same service on bare grpc.aio, through a bare channel."""
    async with (
        server("scripts.benchmark.bare", **environ) as address,
        grpc.aio.insecure_channel(address, options=bare.OPTIONS) as channel,
    ):
        yield channel


@asynccontextmanager
async def server(module: str, *args: str, **environ: str) -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 's'}"
        environ = {**os.environ, "TOOLKIT_MAX_MESSAGE_BYTES": str(bare.LIMIT), **environ}
        command = (sys.executable, "-m", module, *args, address)
        process = await asyncio.create_subprocess_exec(*command, env=environ, stderr=asyncio.subprocess.DEVNULL)
        try:
            async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(30):
                await channel.channel_ready()
            await asyncio.sleep(0.2)  # a replica listens a moment before it serves
            yield address
        finally:
            process.terminate()
            await process.wait()
