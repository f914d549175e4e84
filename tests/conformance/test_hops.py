"""A deadline, and a caller who gives up, cross every hop: with one message or a stream, in either direction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from tests.conformance.conftest import Serve
from toolkit.context import Context
from toolkit.errors import Code, ServiceError

Send = Callable[[EchoClient, float | None], Awaitable[object]]


class Hop(EchoBase):
    """Passes everything on, without a word about deadlines; at the end of the chain it answers, or waits for ever."""

    def __init__(self, below: EchoClient | None, *, waits: bool = False) -> None:
        self.below = below
        self.waits = waits
        self.left: float | None = None
        """Seconds to the deadline when the last call came in."""
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def say(self, request: Note, context: Context) -> Note:
        self.left = context.remaining()
        return await self.answer(request) if self.below is None else await self.below.say(request)

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        self.left = context.remaining()
        if self.below is None:
            yield request
            yield await self.answer(request)
        else:
            async for note in self.below.repeat(request):
                yield note

    async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
        self.left = context.remaining()
        return await self.answer(await anext(requests)) if self.below is None else await self.below.join(requests)

    async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
        self.left = context.remaining()
        if self.below is None:
            async for request in requests:
                yield request
                yield await self.answer(request)
        else:
            async for note in self.below.chat(requests):
                yield note

    async def answer(self, request: Note) -> Note:
        self.began.set()
        if self.waits:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return request


async def notes() -> AsyncIterator[Note]:
    yield Note()


async def read(stream: AsyncIterator[Note]) -> None:
    async for _ in stream:
        pass


SENDS: dict[str, Send] = {
    "unary": lambda echo, timeout: echo.say(Note(), timeout=timeout),
    "server stream": lambda echo, timeout: read(echo.repeat(Note(), timeout=timeout)),
    "client stream": lambda echo, timeout: echo.join(notes(), timeout=timeout),
    "both": lambda echo, timeout: read(echo.chat(notes(), timeout=timeout)),
}


@pytest.fixture(params=SENDS)
def send(request: pytest.FixtureRequest) -> Send:
    """One call, to its end."""
    return SENDS[request.param]


@asynccontextmanager
async def chain(serve: Serve, *, waits: bool = False) -> AsyncIterator[tuple[EchoClient, list[Hop]]]:
    """Three services, each behind the one before: a client of the first, and all of them."""
    async with AsyncExitStack() as stack:
        hops = [Hop(None, waits=waits)]
        below = await stack.enter_async_context(serve(hops[0]))
        for _ in range(2):
            hops.insert(0, Hop(below))
            below = await stack.enter_async_context(serve(hops[0]))
        yield below, hops


async def test_each_hop_has_no_more_time_than_its_caller(serve: Serve, send: Send) -> None:
    async with chain(serve) as (echo, hops):
        await send(echo, 20)
    left = [20.0, *(hop.left for hop in hops if hop.left is not None)]
    assert len(left) == 4
    assert all(below <= above for above, below in pairwise(left))
    assert left[-1] > 10


async def test_the_deployment_s_timeout_is_a_deadline_for_all_that_lies_below(serve: Serve, send: Send) -> None:
    async with chain(serve) as (echo, hops):
        await send(echo, None)
    assert hops[-1].left is not None
    assert 10 < hops[-1].left <= 30


async def test_a_deadline_ends_the_work_at_the_last_hop(serve: Serve, send: Send) -> None:
    async with chain(serve, waits=True) as (echo, hops):
        timeout, leaf = 0.1, hops[-1]
        while not leaf.began.is_set():  # a machine that is busy needs longer to get there
            with pytest.raises(ServiceError) as caught:
                await send(echo, timeout)
            timeout *= 3
        await asyncio.wait_for(leaf.cancelled.wait(), 10)
    assert caught.value.code == Code.DEADLINE_EXCEEDED


async def test_a_caller_that_gives_up_ends_the_work_at_the_last_hop(serve: Serve, send: Send) -> None:
    async with chain(serve, waits=True) as (echo, hops):
        call = asyncio.ensure_future(send(echo, 30))
        await asyncio.wait_for(hops[-1].began.wait(), 10)
        assert not hops[-1].cancelled.is_set()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(hops[-1].cancelled.wait(), 10)
