"""The probe of a container: HTTP/2 of the standard library alone, against real servers and against what is none."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from services.echo.v1.echo_toolkit import EchoBase
from tests.certificates import guarded, make
from toolkit import healthcheck
from toolkit.dispatch import Dispatcher
from toolkit.limits import MessageLimits
from toolkit.server import Server
from toolkit.spec import Incoming


class Echo(EchoBase):
    pass


@asynccontextmanager
async def listening(address: str, incoming: Incoming | None = None) -> AsyncIterator[tuple[Server, str]]:
    server = Server(Echo.__contract__, limits=MessageLimits(), incoming=incoming or Incoming())
    (bound,) = await server.listen((address,))
    try:
        yield server, bound
    finally:
        await server.drain(0)


async def ask(address: str, incoming: Incoming | None = None) -> bool:
    context = healthcheck.tls_context(asdict(incoming or Incoming()))
    return await asyncio.to_thread(healthcheck.is_serving, address, context=context, timeout=20)


@pytest.mark.parametrize("where", ["127.0.0.1:0", "unix:"])
async def test_it_tells_who_is_ready_from_who_still_starts(tmp_path: Path, where: str) -> None:
    address = f"unix:{tmp_path}/s.sock" if where == "unix:" else where
    async with listening(address) as (server, bound):
        assert await ask(bound) is False
        await server.open(Dispatcher(Echo(), timeout=5))
        assert await ask(bound) is True
        await server.drain(0)


async def test_it_gets_through_mutual_tls_and_needs_no_token(tmp_path: Path) -> None:
    incoming, _ = guarded(make(tmp_path / "certs"))
    async with listening("127.0.0.1:0", incoming) as (server, bound):
        await server.open(Dispatcher(Echo(), timeout=5))
        assert await ask(bound, incoming) is True


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100, b"\0" * 9, b"\xff" * 4096])
def test_what_speaks_no_http_2_is_not_ready(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        client = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with client, theirs:
            theirs.sendall(answer)
            theirs.shutdown(socket.SHUT_WR)
            try:
                found = healthcheck._reply(client)
            except OSError:
                found = b""
        assert found != healthcheck.SERVING, address


async def test_as_a_program_it_exits_0_or_1_and_says_why() -> None:
    async def run(address: str) -> tuple[int | None, str]:
        command = (sys.executable, "-S", "-E", healthcheck.__file__, address)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    async with listening("127.0.0.1:0") as (server, bound):
        assert await run(bound) == (1, f"{bound} is not ready\n")
        await server.open(Dispatcher(Echo(), timeout=5))
        assert await run(bound) == (0, "")
    code, said = await run(bound)
    assert code == 1
    assert said.startswith(f"{bound}: ")
