"""Batches form across all callers, wherever they come from, and each caller gets what is its own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Line
from tests.conformance.conftest import Serve
from toolkit.batching import BatchContext, Batcher, batched
from toolkit.errors import Code, ServiceError

CALLS = 9


class Arrivals:
    """The cost of a request, and an event once so many have come."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.all_here = asyncio.Event()

    def cost(self, request: Line) -> float:
        self.left -= 1
        if not self.left:
            self.all_here.set()
        return 1.0


def halving(arrivals: Arrivals, sizes: list[int]) -> EchoBase:
    """Halves even numbers. Whatever batch is the first, it waits until all calls are there."""

    class Halves(EchoBase):
        @batched(max_size=CALLS, cost=arrivals.cost, max_cost=CALLS)
        async def ping(self, requests: list[Line], context: BatchContext) -> list[Line | ServiceError]:
            sizes.append(len(requests))
            await arrivals.all_here.wait()
            return [_half(request) for request in requests]

    return Halves()


def _half(request: Line) -> Line | ServiceError:
    if request.number % 2:
        return ServiceError(Code.OUT_OF_RANGE, f"{request.number} is odd")
    return Line(number=request.number // 2)


async def halve(echo: EchoClient, number: int) -> int | str:
    try:
        return (await echo.ping(Line(number=number))).number
    except ServiceError as error:
        return str(error)


async def test_callers_share_a_batch_and_each_gets_its_own(serve: Serve) -> None:
    sizes: list[int] = []
    async with serve(halving(Arrivals(CALLS), sizes)) as echo:
        found = await asyncio.gather(*(halve(echo, number) for number in range(CALLS)))
    odd = "OUT_OF_RANGE: {} is odd (via echo)"
    assert found == [0, odd.format(1), 1, odd.format(3), 2, odd.format(5), 3, odd.format(7), 4]
    assert sum(sizes) == CALLS
    assert len(sizes) <= 2


class Gated(EchoBase):
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate, self.started = asyncio.Event(), asyncio.Event()

    @batched()
    async def ping(self, requests: list[Line], context: BatchContext) -> list[Line]:
        self.batches.append([request.number for request in requests])
        self.started.set()
        await self.gate.wait()
        return requests


def batcher(service: Gated) -> Batcher:
    found: Any = service.ping
    assert isinstance(found, Batcher)
    return found


async def test_who_has_gone_is_in_no_batch(serve: Serve) -> None:
    service, timeout = Gated(), 0.1
    batches = batcher(service)
    async with serve(service) as echo:
        first = asyncio.create_task(echo.ping(Line(number=1)))
        await service.started.wait()
        while not batches.figures.late + batches.figures.cancelled:  # a machine that is busy needs longer to get there
            with pytest.raises(ServiceError) as late:
                await echo.ping(Line(number=2), timeout=timeout)
            timeout *= 3
            while batches.queued:  # noqa: ASYNC110 - what is counted has no event
                await asyncio.sleep(0)
        service.gate.set()
        assert (await first).number == 1
        assert (await echo.ping(Line(number=3))).number == 3
    assert late.value.code == Code.DEADLINE_EXCEEDED
    assert service.batches == [[1], [3]]
