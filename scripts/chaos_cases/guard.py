"""What those cost who may not call at all; and what all of it costs those who may."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import grpc
import grpc.aio

from scripts.benchmark import calls
from scripts.chaos_cases.case import Case, Row, say
from scripts.chaos_cases.fleet import Process, fleet
from toolkit.spec import Incoming

UPLOADS: Final = 64
MIB: Final = 1 << 20
SIZE: Final = 16 * MIB
TOTAL: Final = "/services.echo.v1.Echo/Total"


async def uploads() -> AsyncIterator[Row]:
    """64 uploads of 16 MiB at once without a token."""
    with TemporaryDirectory() as folder:
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text(secrets.token_urlsafe(32))
        async with fleet() as found, AsyncExitStack() as stack:
            (replica,) = await found.start("leaf", "Upload", replicas=1, incoming=Incoming(token_file=str(token)))
            options = [("grpc.max_send_message_length", 2 * SIZE), ("grpc.use_local_subchannel_pool", 1)]
            channels = [
                await stack.enter_async_context(grpc.aio.insecure_channel(replica.address, options=options))
                for _ in range(UPLOADS)
            ]
            body = bytes(SIZE)
            await upload(channels[0], b"")
            before = replica.rss
            say(f"uploads: {UPLOADS} begin")
            watching = asyncio.create_task(highest(replica))
            codes = await asyncio.gather(*(upload(channel, body) for channel in channels))
            watching.cancel()
            await asyncio.wait([watching])
            peak = max(PEAKS)
    wrong = [code for code in codes if code is not grpc.StatusCode.UNAUTHENTICATED]
    say(f"uploads: {', '.join(sorted({str(code) for code in codes}))}")
    yield Row("uploads", "that were not UNAUTHENTICATED", len(wrong), "<=", 0)
    yield Row(
        "uploads",
        "memory that the server gained at most",
        (peak - before) / MIB,
        "<=",
        64,
        "MiB",
        {"before": before / MIB},
    )


PEAKS: Final[list[int]] = [0]


async def highest(replica: Process) -> None:
    while True:
        PEAKS.append(replica.rss)
        await asyncio.sleep(0.01)


async def upload(channel: grpc.aio.Channel, body: bytes) -> grpc.StatusCode:
    send: Any = channel.unary_unary(TOTAL)
    try:
        await send(body, timeout=60)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def overhead() -> AsyncIterator[Row]:
    """A call through a handle with all of this, against a bare one: the case call-grpc of scripts/bench."""
    outcome = await calls.call_grpc()
    yield Row("overhead", "time of a call, of a bare one's", outcome.ratio, "<=", outcome.limit, "", outcome.measured)


CASES = (Case("uploads", uploads), Case("overhead", overhead))
