"""What a stream costs through handles, against bare grpc.aio, and that nothing of it is lost."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc.aio

from scripts.benchmark import bare
from scripts.benchmark.case import Case, Outcome, Work, micros, time_in_turns
from scripts.benchmark.processes import ours, server, theirs
from services.echo.v1.echo_toolkit import EchoClient, Note
from toolkit.connect import connect

ITEMS: Final = 500
SOURCE: Final = ("toolkit.replica", "scripts.benchmark.chained:Source", "--listen")
CHAINED: Final = ("toolkit.replica", "scripts.benchmark.chained:Chained")
ASK: Final = Note(text="a token or two", times=ITEMS)
FIRST: Final = Note(text="a token or two", times=1)
EXACT_RUNS: Final = int(os.environ.get("EXACT_RUNS", "10"))
PACES: Final = 12
STOPPED: Final = 3.0
"""Seconds."""
EXACT_ITEMS: Final = 10_000
MOST_BYTES: Final = 4096


@asynccontextmanager
async def chain(length: int) -> AsyncIterator[EchoClient]:
    """A handle to the first of so many services, each in a process of its own; the last one is the source."""
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(server(*SOURCE))
        for _ in range(length - 1):
            command = (*CHAINED, "--handle", f"source={address}", "--listen")
            address = await stack.enter_async_context(server(*command))
        yield await stack.enter_async_context(connect(EchoClient, address, max_message_bytes=bare.LIMIT))


def bare_stream(channel: grpc.aio.Channel) -> Work:
    repeat = channel.unary_stream("/services.echo.v1.Echo/Repeat", bare.Note.SerializeToString, bare.Note.FromString)

    async def read() -> None:
        length = 0
        async for note in repeat(bare.Note(text=ASK.text, times=ITEMS)):
            length += len(note.text)
        assert length == ITEMS * len(ASK.text)

    return read


def our_stream(echo: EchoClient) -> Work:
    async def read() -> None:
        length = 0
        async for note in echo.repeat(ASK):
            length += len(note.text)
        assert length == ITEMS * len(ASK.text)

    return read


def first_item(echo: EchoClient) -> Work:
    async def read() -> None:
        async with echo.repeat(FIRST) as notes:
            await anext(notes)

    return read


async def stream_grpc() -> Outcome:
    """Items a second of a server's stream, through a handle ÷ through a bare stub."""
    return await _against_bare("stream-grpc", 1, 0.85)


async def stream_chain() -> Outcome:
    """Items a second through two chained services ÷ straight from a bare server."""
    return await _against_bare("stream-chain", 2, 0.4)


async def _against_bare(name: str, length: int, limit: float) -> Outcome:
    """How gRPC's threads fall in with each other sets a pace that a connection keeps, and that differs by a factor of two from
    one to the next, on both sides. So each round has servers and connections of its own, and the median of their paces counts:
    the best would be a connection's luck, which a chain needs once for each of its links.
    """
    mine, other = [], []
    for _ in range(PACES):
        async with chain(length) as echo, theirs() as channel:
            both = await time_in_turns(our_stream(echo), bare_stream(channel), rounds=10, calls=1)
        mine.append(min(both[0]))
        other.append(min(both[1]))
    measured = {
        "ours_per_s": 1e6 * ITEMS / micros(mine),
        "bare_per_s": 1e6 * ITEMS / micros(other),
        "ours_best_per_s": ITEMS / min(mine),
        "bare_best_per_s": ITEMS / min(other),
    }
    return Outcome(name, micros(other) / micros(mine), ">=", limit, measured)


async def stream_first() -> Outcome:
    """Milliseconds by which the first item comes later through two services than from the source alone."""
    async with chain(2) as two, chain(1) as one:
        through, alone = await time_in_turns(first_item(two), first_item(one), rounds=20, calls=20)
    measured = {"two_us": micros(through), "one_us": micros(alone)}
    return Outcome("stream-first", (micros(through) - micros(alone)) / 1000, "<=", 2.0, measured)


async def stream_exact() -> Outcome:
    """Runs in which 10 000 items of mixed sizes did not come through three services whole and in order (EXACT_RUNS: how many)."""
    wrong, start = 0, time.perf_counter()
    async with chain(3) as echo:
        for run in range(EXACT_RUNS):
            wrong += not await _is_exact(echo, run)
    measured = {"runs": EXACT_RUNS, "items_per_s": EXACT_RUNS * EXACT_ITEMS / (time.perf_counter() - start)}
    return Outcome("stream-exact", wrong, "<=", 0, measured)


async def _is_exact(echo: EchoClient, seed: int) -> bool:
    async def sent() -> AsyncIterator[Note]:
        for note in _mixed(seed):
            yield note

    expected = _mixed(seed)
    async for note in echo.chat(sent(), timeout=120):
        if note != next(expected, None):
            return False
    return next(expected, None) is None


def _mixed(seed: int) -> Any:
    sizes = random.Random(seed)
    data = sizes.randbytes(MOST_BYTES)
    for number in range(EXACT_ITEMS):
        yield Note(number=number, blob=data[: int(MOST_BYTES ** sizes.random()) - 1])


async def stream_memory() -> Outcome:
    """MiB by which the writer of a stream grows while its reader has stopped, with items of 64 KiB."""
    ask = Note(blob=bytes(65536), times=1_000_000)
    async with ours() as echo:
        (writer,) = _children()
        for _ in range(3):
            await _read_some(echo, ask)  # warm up
        before = _resident(writer)
        async with echo.repeat(ask) as notes:
            await anext(notes)
            await asyncio.sleep(STOPPED)
            after = _resident(writer)
    return Outcome("stream-memory", after - before, "<=", 4.0, {"before_mib": before, "after_mib": after})


async def _read_some(echo: EchoClient, ask: Note) -> None:
    async with echo.repeat(ask) as notes:
        for _ in range(100):
            await anext(notes)


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def _resident(process: str) -> float:
    """MiB of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


CASES = (
    Case("stream-grpc", stream_grpc),
    Case("stream-chain", stream_chain),
    Case("stream-first", stream_first),
    Case("stream-exact", stream_exact),
    Case("stream-memory", stream_memory),
)
