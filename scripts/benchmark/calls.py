"""What a call costs through a handle, against bare grpc.aio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc.aio

from scripts.benchmark import bare
from scripts.benchmark.case import Case, Outcome, Work, micros, ratio, time_in_turns
from scripts.benchmark.processes import ours, theirs
from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient, Line
from toolkit.dispatch import Dispatcher
from toolkit.transport.local import LocalTransport

IN_FLIGHT: Final = 32
LINE: Final = Line(text="a small message", number=7)


def bare_ping(channel: grpc.aio.Channel) -> Work:
    ping = channel.unary_unary("/services.echo.v1.Echo/Ping", bare.Line.SerializeToString, bare.Line.FromString)
    return lambda: ping(bare.Line(text="a small message", number=7))


def our_ping(echo: EchoClient) -> Work:
    return lambda: echo.ping(LINE)


async def call_grpc() -> Outcome:
    """A unary call through a handle over gRPC: its median ÷ that of a bare grpc.aio stub."""
    async with ours() as echo, theirs() as channel:
        mine, other = await time_in_turns(our_ping(echo), bare_ping(channel), rounds=60, calls=50)
    measured = {"ours_us": micros(mine), "bare_us": micros(other)}
    return Outcome("call-grpc", ratio(mine, other), "<=", 1.15, measured)


async def throughput_grpc() -> Outcome:
    """Unary calls a second with 32 in flight, through a handle ÷ through a bare stub."""
    async with ours() as echo, theirs() as channel:
        mine, other = await time_in_turns(_burst(our_ping(echo)), _burst(bare_ping(channel)), rounds=10, calls=1)
    ours_rate, bare_rate = 1e6 / micros(mine) * _BURST, 1e6 / micros(other) * _BURST
    measured = {"ours_per_s": ours_rate, "bare_per_s": bare_rate}
    return Outcome("throughput-grpc", ratio(other, mine), ">=", 0.85, measured)


async def call_local() -> Outcome:
    """A unary call of a bare grpc.aio stub: its median ÷ that of a handle in the same process."""
    local = EchoClient(LocalTransport(Dispatcher(Echo(), timeout=60)))
    async with theirs() as channel:
        mine, other = await time_in_turns(our_ping(local), bare_ping(channel), rounds=10, calls=200)
    measured = {"ours_us": micros(mine), "bare_us": micros(other)}
    return Outcome("call-local", ratio(other, mine), ">=", 25, measured)


_BURST: Final = 1600


def _burst(work: Work) -> Callable[[], Awaitable[Any]]:
    async def one_lane() -> None:
        for _ in range(_BURST // IN_FLIGHT):
            await work()

    async def burst() -> float:
        start = time.perf_counter()
        await asyncio.gather(*(one_lane() for _ in range(IN_FLIGHT)))
        return time.perf_counter() - start

    return burst


CASES = (Case("call-grpc", call_grpc), Case("throughput-grpc", throughput_grpc), Case("call-local", call_local))
