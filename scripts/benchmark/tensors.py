"""What a large tensor costs through a handle: against the same bytes with nothing round them, and against the naive way."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import numpy as np

from scripts.benchmark.case import Case, Outcome, Work, micros, timed
from scripts.benchmark.processes import ours, server, theirs
from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient, Image
from toolkit.dispatch import Dispatcher
from toolkit.memory import keep_freed_memory
from toolkit.tensor import Tensor
from toolkit.transport.local import LocalTransport

ROUNDS: Final = 8
CALLS: Final = 5


async def against_raw_and_naive(method: str, mib: int) -> tuple[float, float, float]:
    """Median microseconds of ours, of the raw bytes, and of the naive way, taken in turns."""
    keep_freed_memory()
    array = np.ones((mib << 20) // 4, np.float32)
    raw = array.tobytes()
    async with ours() as echo, theirs(KEEP_FREED_MEMORY="1") as channel, naive(method, mib) as naively:
        send: Any = channel.unary_unary(f"/services.echo.v1.Echo/{'Raw' if method == 'Reflect' else 'RawTotal'}")

        async def reflect() -> None:
            reply = await echo.reflect(Image(pixels=Tensor.of(array)))
            assert reply.pixels is not None
            reply.pixels.numpy()

        async def total() -> None:
            await echo.total(Image(pixels=Tensor.of(array)))

        async def raw_call() -> None:
            await send(raw)

        works: tuple[Work, ...] = (reflect if method == "Reflect" else total, raw_call)
        timings: list[list[float]] = [[], [], []]
        for number in range(ROUNDS + 1):
            for work, found in zip(works, timings, strict=False):
                found += (await timed(work, CALLS)) if number else []
                if not number:
                    await timed(work, 2)
            timings[2] += await naively(CALLS)
    return micros(timings[0]), micros(timings[1]), micros(timings[2])


@asynccontextmanager
async def naive(method: str, mib: int) -> AsyncIterator[Callable[[int], Awaitable[list[float]]]]:
    """A client process and a server process of the naive way; what it yields runs a round there."""
    async with server("scripts.benchmark.bare") as address:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scripts.benchmark.naive", address, method, str(mib),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        async def run(calls: int) -> list[float]:
            stdin.write(f"{calls}\n".encode())
            found: list[float] = json.loads(await stdout.readline())
            return found

        try:
            yield run
        finally:
            stdin.close()
            await process.wait()


async def over_raw(name: str, method: str, mib: int) -> Outcome:
    """Tensors to a service and, but for a sum, back: the time ÷ that of the same bytes through bare grpc.aio."""
    mine, raw, naively = await against_raw_and_naive(method, mib)
    measured = {"ours_us": mine, "raw_us": raw, "naive_us": naively, "naive_ratio": naively / mine}
    return Outcome(name, mine / raw, "<=", 1.25, measured)


async def over_naive(name: str, method: str, mib: int) -> Outcome:
    """The same with `tobytes` and protobuf's own message: its time ÷ ours."""
    mine, raw, naively = await against_raw_and_naive(method, mib)
    return Outcome(name, naively / mine, ">=", 3, {"ours_us": mine, "raw_us": raw, "naive_us": naively})


async def local() -> Outcome:
    """A tensor of 16 MiB, handed over within the process."""
    echo = EchoClient(LocalTransport(Dispatcher(Echo(), timeout=60)))
    image = Image(pixels=Tensor.of(np.ones(4 << 20, np.float32)))

    async def reflect() -> None:
        reply = await echo.reflect(image)
        assert reply.pixels is image.pixels

    await timed(reflect, 100)
    value = micros(await timed(reflect, 2000))
    return Outcome("tensor-16m-local", value, "<=", 50, {"ours_us": value})


def _cases() -> tuple[Case, ...]:
    found = []
    for name, method, mib in (("tensor-16m-echo", "Reflect", 16), ("tensor-64m-sum", "Total", 64)):
        found.append(Case(name, partial(over_raw, name, method, mib)))
        found.append(Case(f"{name}-naive", partial(over_naive, f"{name}-naive", method, mib)))
    return (*found, Case("tensor-16m-local", local))


CASES = _cases()
