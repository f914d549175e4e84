"""What a handle makes of replicas that fail or are slow, whatever carries its calls there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from tests.conformance.conftest import Deploy
from toolkit.context import Context
from toolkit.deadline import Deadline
from toolkit.errors import Code, ServiceError
from toolkit.policy.hedge import HedgeOptions
from toolkit.policy.retry import BudgetOptions, RetryOptions
from toolkit.transport.base import Call
from toolkit.transport.pool import HandleOptions

METHODS = {method.attribute: method for method in EchoBase.__contract__.methods}
ONCE = replace(METHODS["say"], idempotent=False)
REPEATABLE = replace(METHODS["repeat"], idempotent=True)
TIMES = 20
"""Often enough for each of two replicas to be asked first, but for one run in a million."""
AT_ONCE = RetryOptions(initial_backoff=0.0)
RETRIED = HandleOptions(retry=AT_ONCE, budget=BudgetOptions(reserve=100))
HEDGED = HandleOptions(retry=AT_ONCE, hedge=HedgeOptions(delay=0.01), budget=BudgetOptions(reserve=100))

Act = Callable[[], Awaitable[None]]


class Acts(EchoBase):
    """Does `act` in each handler, and counts. Its streams send one note before."""

    def __init__(self, act: Act, number: int = 0) -> None:
        self.act = act
        self.number = number
        self.begun = self.cancelled = self.running = 0
        self.idle = asyncio.Event()

    async def say(self, request: Note, context: Context) -> Note:
        await self.run()
        return Note(number=self.number)

    async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
        await self.run()
        return Note(number=self.number)

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        if request.times:
            yield Note(number=self.number)
        await self.run()
        yield Note(number=self.number)

    async def run(self) -> None:
        self.begun += 1
        self.running += 1
        try:
            await self.act()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self.idle.set()


async def replies() -> None:
    return


async def hangs() -> None:
    await asyncio.Event().wait()


def fails(code: Code = Code.UNAVAILABLE, retry_after: float | None = None) -> Act:
    async def act() -> None:
        raise ServiceError(code, "as told", retry_after=retry_after)

    return act


async def notes() -> AsyncIterator[Note]:
    yield Note()


async def read(stream: AsyncIterator[Note]) -> list[int]:
    return [note.number async for note in stream]


async def test_an_idempotent_call_that_fails_at_one_replica_is_answered_by_another(deploy: Deploy) -> None:
    bad, good = Acts(fails()), Acts(replies, 1)
    async with deploy(bad, good, options=RETRIED) as transport:
        echo = EchoClient(transport)
        assert [(await echo.say(Note(), timeout=30)).number for _ in range(TIMES)] == [1] * TIMES
    assert bad.begun > 0
    assert good.begun == TIMES


async def test_what_is_not_idempotent_is_sent_once(deploy: Deploy) -> None:
    one, other = Acts(fails()), Acts(fails())
    async with deploy(one, other, options=RETRIED) as transport:
        echo, call = EchoClient(transport), Call(Deadline.after(30))
        for send in (
            lambda: transport.unary(ONCE, Note(), call),
            lambda: echo.join(notes(), timeout=30),
            lambda: read(echo.repeat(Note(), timeout=30)),
        ):
            before = one.begun + other.begun
            with pytest.raises(ServiceError, match="as told"):
                await send()
            assert one.begun + other.begun == before + 1


async def test_a_replica_that_wants_no_retry_gets_none_and_one_that_wants_it_later_gets_it_later(
    deploy: Deploy,
) -> None:
    only = Acts(fails(retry_after=-1.0))
    async with deploy(only, options=RETRIED) as transport:
        echo = EchoClient(transport)
        with pytest.raises(ServiceError):
            await echo.say(Note(), timeout=30)
        assert only.begun == 1
        only.act = fails(retry_after=0.05)
        start = time.monotonic()
        with pytest.raises(ServiceError):
            await echo.say(Note(), timeout=30)
        assert only.begun == 1 + AT_ONCE.attempts
        assert time.monotonic() - start >= 0.9 * 3 * 0.05


async def test_a_refusal_is_not_tried_elsewhere(deploy: Deploy) -> None:
    """Whoever is overloaded is not helped by more calls."""
    one, other = Acts(fails(Code.RESOURCE_EXHAUSTED, 0.0)), Acts(fails(Code.RESOURCE_EXHAUSTED, 0.0))
    async with deploy(one, other, options=RETRIED) as transport:
        with pytest.raises(ServiceError) as caught:
            await EchoClient(transport).say(Note(), timeout=30)
    assert (caught.value.code, caught.value.retry_after) == (Code.RESOURCE_EXHAUSTED, 0.0)
    assert one.begun + other.begun == 1


async def test_a_stream_begins_again_elsewhere_until_its_first_item_and_never_after_it(deploy: Deploy) -> None:
    bad, good = Acts(fails()), Acts(replies, 1)
    async with deploy(bad, good, options=RETRIED) as transport:
        for _ in range(TIMES):
            assert await read(transport.server_stream(REPEATABLE, Note(), Call(Deadline.after(30)))) == [1]
        assert bad.begun > 0
        good.act = fails()
        for _ in range(TIMES):
            before = bad.begun + good.begun
            stream = transport.server_stream(REPEATABLE, Note(times=1), Call(Deadline.after(30)))
            await anext(stream)
            with pytest.raises(ServiceError, match="as told"):
                await anext(stream)
            assert bad.begun + good.begun == before + 1


async def test_a_slow_call_is_answered_by_another_replica_and_cancelled_where_it_was_slow(deploy: Deploy) -> None:
    slow, quick = Acts(hangs), Acts(replies, 1)
    async with deploy(slow, quick, options=HEDGED) as transport:
        echo = EchoClient(transport)
        for _ in range(TIMES):
            assert (await echo.say(Note(), timeout=30)).number == 1
        await until_idle(slow)
        assert slow.cancelled == slow.begun > 0
        assert [replica.outstanding for replica in transport.replicas] == [0, 0]


async def test_a_caller_that_gives_up_cancels_a_call_wherever_it_was_sent(deploy: Deploy) -> None:
    one, other = Acts(hangs), Acts(hangs)
    async with deploy(one, other, options=HEDGED) as transport:
        call = asyncio.create_task(EchoClient(transport).say(Note(), timeout=30))
        while not (one.running and other.running):  # noqa: ASYNC110 - what is counted has no event
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until_idle(one, other)
    assert (one.cancelled, other.cancelled) == (1, 1)


async def until_idle(*services: Acts) -> None:
    for service in services:
        while service.running:
            service.idle.clear()
            await asyncio.wait_for(service.idle.wait(), 10)
