"""One handle over many replicas: what is tried again and where, what runs side by side, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.context import Context
from toolkit.deadline import Deadline
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError
from toolkit.policy.admission import AdmissionOptions
from toolkit.policy.hedge import HedgeOptions
from toolkit.policy.retry import BudgetOptions, RetryOptions
from toolkit.transport.base import Call, Transport
from toolkit.transport.local import LocalTransport
from toolkit.transport.pool import HandleOptions, PoolTransport

METHODS = {method.attribute: method for method in EchoBase.__contract__.methods}
SAY = METHODS["say"]
ONCE = replace(SAY, idempotent=False)
REPEAT = METHODS["repeat"]
REPEATABLE = replace(REPEAT, idempotent=True)
JOIN = replace(METHODS["join"], idempotent=True)
CALL = Call()
LONG = 60.0
AT_ONCE = RetryOptions(initial_backoff=0.0)
HEDGED = HandleOptions(retry=AT_ONCE, hedge=HedgeOptions(delay=0.0), budget=BudgetOptions(reserve=20))
"""A second attempt is sent as soon as the first one waits for anything."""

Act = Callable[[], Awaitable[Note]]


async def replies() -> Note:
    return Note(text="reply")


async def hangs() -> Note:
    await asyncio.Event().wait()
    raise AssertionError


def fails(code: Code = Code.UNAVAILABLE, **more: Any) -> Act:
    async def act() -> Note:
        raise ServiceError(code, "as told", **more)

    return act


def after(event: asyncio.Event, act: Act) -> Act:
    async def later() -> Note:
        await event.wait()
        return await act()

    return later


class Fake:
    """A replica that does as told; each item of its streams is one `act`."""

    def __init__(self, address: str, act: Act = replies) -> None:
        self.address = address
        self.act = act
        self.calls: list[Call] = []
        self.began = asyncio.Event()
        self.running = self.cancelled = 0
        self.is_closed = False

    async def unary(self, method: object, request: object, call: Call) -> Any:
        self.calls.append(call)
        self.running += 1
        self.began.set()
        try:
            return await self.act()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def client_stream(self, method: object, requests: AsyncIterable[Any], call: Call) -> Any:
        async for _ in requests:
            pass
        return await self.unary(method, None, call)

    async def server_stream(self, method: object, request: object, call: Call) -> AsyncIterator[Any]:
        self.calls.append(call)
        self.running += 1
        try:
            while True:
                yield await self.act()
        finally:
            self.running -= 1

    def bidi_stream(self, method: object, requests: object, call: Call) -> AsyncIterator[Any]:
        return self.server_stream(method, None, call)

    async def close(self) -> None:
        assert not self.running, "closed under a call"
        self.is_closed = True


class Deployment:
    """A pool over fakes, by address. Its health is what `say_ready` says; silent until then where `watched`."""

    def __init__(
        self, *addresses: str, act: Act = replies, options: HandleOptions | None = None, watched: bool = False
    ) -> None:
        self.fakes: dict[str, Fake] = {}
        self.news: dict[str, asyncio.Queue[bool | Exception]] = {}
        self.act = act
        if options is None:
            options = HandleOptions(retry=AT_ONCE)
        watch = self.watch if watched else None
        self.pool = PoolTransport(addresses, self.connect, name="leaf", watch=watch, options=options)

    def connect(self, address: str) -> Transport:
        self.fakes[address] = Fake(address, self.act)
        self.news[address] = asyncio.Queue()
        return self.fakes[address]

    async def watch(self, transport: Transport) -> AsyncIterator[bool]:
        assert isinstance(transport, Fake)
        while True:
            said = await self.news[transport.address].get()
            if isinstance(said, Exception):
                raise said
            yield said

    async def say_ready(self, **addresses: bool) -> None:
        for address, is_ready in addresses.items():
            self.news[address].put_nowait(is_ready)
        await turns()

    @property
    def attempts(self) -> int:
        return sum(len(fake.calls) for fake in self.fakes.values())

    @property
    def running(self) -> list[Fake]:
        return [fake for fake in self.fakes.values() if fake.running]

    async def call(self, timeout: float | None = None) -> Note:
        return await self.pool.unary(SAY, Note(), Call(None if timeout is None else Deadline.after(timeout)))

    def assert_nothing_left(self) -> None:
        assert self.running == []
        assert [replica.outstanding for replica in self.pool.replicas] == [0] * len(self.pool.replicas)
        assert [replica.streams for replica in self.pool.replicas] == [0] * len(self.pool.replicas)
        assert self.pool.door.admission.running == 0


async def turns(count: int = 5) -> None:
    """Let the event loop run what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is counted has no event
        await asyncio.sleep(0)


async def notes() -> AsyncIterator[Note]:
    yield Note()


async def read(stream: AsyncIterator[Note], into: list[str] | None = None) -> None:
    async for note in stream:
        if into is not None:
            into.append(note.text)


# Retries


async def test_a_failed_attempt_is_made_again_at_every_replica_before_any_is_asked_twice() -> None:
    leaf = Deployment(*"abc", act=fails(), options=HandleOptions(retry=AT_ONCE, budget=BudgetOptions(reserve=50)))
    leaf.fakes["c"].act = replies
    for _ in range(10):
        for fake in leaf.fakes.values():
            fake.calls.clear()
        assert (await leaf.call()).text == "reply"
        assert max(len(fake.calls) for fake in leaf.fakes.values()) == 1
    leaf.assert_nothing_left()


async def test_with_one_replica_it_is_asked_again() -> None:
    leaf = Deployment("a", act=fails())
    with pytest.raises(ServiceError, match="as told"):
        await leaf.call()
    assert leaf.attempts == RetryOptions().attempts
    leaf.assert_nothing_left()


async def test_what_is_not_idempotent_is_sent_once_unless_nobody_saw_it() -> None:
    leaf = Deployment(*"ab", act=fails())
    with pytest.raises(ServiceError):
        await leaf.pool.unary(ONCE, Note(), CALL)
    assert leaf.attempts == 1
    for fake in leaf.fakes.values():
        fake.act = fails(unseen=True)
    with pytest.raises(ServiceError):
        await leaf.pool.unary(ONCE, Note(), CALL)
    assert leaf.attempts == 1 + 4


@pytest.mark.parametrize("code", [code for code in Code if code not in (Code.OK, Code.UNAVAILABLE)])
async def test_only_unavailable_is_tried_again(code: Code) -> None:
    leaf = Deployment(*"ab", act=fails(code))
    with pytest.raises(ServiceError) as caught:
        await leaf.call()
    assert caught.value.code == code
    assert leaf.attempts == 1
    leaf.assert_nothing_left()


async def test_an_error_from_deeper_is_not_tried_again() -> None:
    """Whoever called the one that failed has done so."""
    leaf = Deployment(*"ab", act=fails(path=["deeper"]))
    with pytest.raises(ServiceError):
        await leaf.call()
    assert leaf.attempts == 1


async def test_the_budget_ends_retries_for_all_calls_together() -> None:
    budget = BudgetOptions(reserve=5, per_second=0.0)
    leaf = Deployment(*"abc", act=fails(), options=HandleOptions(retry=AT_ONCE, budget=budget))
    for _ in range(20):
        with pytest.raises(ServiceError):
            await leaf.call()
    assert leaf.attempts == 20 + 5
    assert leaf.pool.budget.spent == 5


async def test_replies_and_errors_that_no_retry_would_cure_fill_the_budget() -> None:
    budget = BudgetOptions(reserve=0, per_second=0.0, ratio=0.5)
    leaf = Deployment("a", options=HandleOptions(retry=AT_ONCE, budget=budget))
    await leaf.call()
    leaf.fakes["a"].act = fails(Code.NOT_FOUND)
    with pytest.raises(ServiceError):
        await leaf.call()
    leaf.fakes["a"].act = fails()
    with pytest.raises(ServiceError):
        await leaf.call()
    assert leaf.pool.budget.spent == 1


async def test_pushback_is_waited_for() -> None:
    leaf = Deployment("a", act=fails(retry_after=0.05))
    start = time.monotonic()
    with pytest.raises(ServiceError):
        await leaf.call()
    assert time.monotonic() - start >= 3 * 0.05
    assert leaf.attempts == 4


@pytest.mark.parametrize("retry_after", [-1.0, LONG])
async def test_no_retry_where_none_is_wanted_or_the_deadline_would_pass_first(retry_after: float) -> None:
    leaf = Deployment("a", act=fails(retry_after=retry_after))
    with pytest.raises(ServiceError):
        await leaf.call(timeout=LONG / 2)
    assert leaf.attempts == 1


async def test_a_call_without_a_deadline_waits_for_no_pause_without_end() -> None:
    leaf = Deployment("a", act=fails(retry_after=3 * 86_400.0))
    async with asyncio.timeout(LONG):
        with pytest.raises(ServiceError, match="as told") as caught:
            await leaf.call()
    assert leaf.attempts == 1
    assert caught.value.retry_after == 3 * 86_400.0


async def test_every_attempt_has_the_deadline_of_the_call() -> None:
    leaf = Deployment(*"ab", act=fails())
    deadline = Deadline.after(LONG)
    with pytest.raises(ServiceError):
        await leaf.pool.unary(SAY, Note(), Call(deadline))
    assert [call.deadline for fake in leaf.fakes.values() for call in fake.calls] == [deadline] * 4


async def test_a_request_stream_that_was_read_is_not_sent_again() -> None:
    leaf = Deployment(*"ab", act=fails(unseen=True))
    with pytest.raises(ServiceError):
        await leaf.pool.client_stream(JOIN, notes(), CALL)
    assert leaf.attempts == 1
    leaf.assert_nothing_left()


async def test_a_request_stream_that_found_no_replica_waits_for_one() -> None:
    leaf = Deployment("a", watched=True, options=HandleOptions(retry=RetryOptions(initial_backoff=0.001)))
    await leaf.say_ready(a=False)
    call = asyncio.create_task(leaf.pool.client_stream(JOIN, notes(), CALL))
    await turns(1)
    await leaf.say_ready(a=True)
    assert (await call).text == "reply"
    await leaf.pool.close()


async def test_a_reply_stream_is_begun_again_before_its_first_item_only() -> None:
    leaf = Deployment(*"ab", act=fails())
    leaf.fakes["a"].act = take(["one", "two"], then=fails())
    for _ in range(20):
        found: list[str] = []
        with pytest.raises(ServiceError):
            await read(leaf.pool.server_stream(REPEATABLE, Note(), CALL), into=found)
        assert found in ([], ["one", "two"])
        leaf.fakes["a"].act = take(["one", "two"], then=fails())
        leaf.assert_nothing_left()
    assert leaf.fakes["b"].calls, "some began at the other replica, but for one run in a million"


async def test_a_reply_stream_that_is_not_idempotent_is_begun_once() -> None:
    leaf = Deployment(*"ab", act=fails())
    with pytest.raises(ServiceError):
        await read(leaf.pool.server_stream(REPEAT, Note(), CALL))
    assert leaf.attempts == 1


def take(texts: Iterable[str], then: Act) -> Act:
    left = iter(texts)

    async def act() -> Note:
        for text in left:
            return Note(text=text)
        return await then()

    return act


async def test_a_caller_that_gives_up_between_attempts_ends_the_call() -> None:
    leaf = Deployment("a", act=fails(retry_after=LONG / 4))
    call = asyncio.create_task(leaf.call())
    await leaf.fakes["a"].began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    leaf.assert_nothing_left()


# Readiness


async def test_the_first_call_waits_until_a_replica_has_spoken() -> None:
    leaf = Deployment(*"ab", watched=True)
    call = asyncio.create_task(leaf.call())
    await leaf.say_ready(a=False)
    assert not call.done()
    await leaf.say_ready(b=True)
    assert (await call).text == "reply"
    assert len(leaf.fakes["b"].calls) == 1
    await leaf.pool.close()


async def test_the_first_call_fails_once_all_have_said_no() -> None:
    leaf = Deployment(*"ab", watched=True)
    call = asyncio.create_task(leaf.call())
    await leaf.say_ready(a=False, b=False)
    with pytest.raises(ServiceError, match="leaf: nobody answers, or none is ready, at a, b") as caught:
        await call
    assert caught.value.code == Code.UNAVAILABLE
    assert leaf.attempts == 0
    await leaf.pool.close()


async def test_the_first_call_does_not_wait_beyond_its_deadline() -> None:
    leaf = Deployment("a", watched=True)
    with pytest.raises(ServiceError, match="the deadline passed before leaf answered"):
        await leaf.call(timeout=0.01)
    leaf.assert_nothing_left()
    await leaf.pool.close()


async def test_a_replica_that_goes_before_it_has_spoken_is_not_waited_for() -> None:
    leaf = Deployment(*"ab", watched=True)
    await leaf.say_ready(a=False)
    call = asyncio.create_task(leaf.call())
    await turns()
    leaf.pool.set_addresses("a")
    with pytest.raises(ServiceError, match="none is ready, at a$"):
        await call
    await leaf.pool.close()


async def test_without_an_address_a_call_fails_at_once() -> None:
    leaf = Deployment(watched=True)
    with pytest.raises(ServiceError, match="no address"):
        await leaf.call()


async def test_all_down_then_back() -> None:
    leaf = Deployment(*"ab", watched=True)
    await leaf.say_ready(a=True, b=True)
    await leaf.call()
    await leaf.say_ready(a=False, b=False)
    with pytest.raises(ServiceError, match="none is ready"):
        await leaf.call()
    await leaf.say_ready(b=True)
    assert (await leaf.call()).text == "reply"
    await leaf.pool.close()


async def test_when_the_last_leaves_calls_wait_a_moment_for_who_takes_its_place() -> None:
    """However few retries there are: it is another process at the same address, or one at an address that is told."""
    leaf = Deployment("a", watched=True, options=HandleOptions(retry=RetryOptions(attempts=1)))
    await leaf.say_ready(a=True)
    await leaf.say_ready(a=False)
    await leaf.say_ready(a=False)  # its health said so, and then its connection
    leaf.pool.set_addresses("a")
    stream = leaf.pool.server_stream(REPEAT, Note(), CALL)
    call, item = asyncio.create_task(leaf.call()), asyncio.ensure_future(anext(stream))
    await turns()
    assert (call.done(), item.done()) == (False, False)
    leaf.pool.set_addresses("ab")
    await turns()
    assert (call.done(), item.done()) == (False, False)
    await leaf.say_ready(b=True)
    assert ((await call).text, (await item).text) == ("reply", "reply")
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    await leaf.pool.close()


async def test_a_replica_that_comes_while_a_call_retries_answers_it() -> None:
    leaf = Deployment("a", watched=True, options=HandleOptions(retry=RetryOptions(initial_backoff=0.001)))
    await leaf.say_ready(a=False)
    call = asyncio.create_task(leaf.call())
    await turns(1)
    await leaf.say_ready(a=True)
    assert (await call).text == "reply"
    await leaf.pool.close()


async def test_a_watch_that_breaks_is_logged_and_its_replica_gets_no_calls(caplog: pytest.LogCaptureFixture) -> None:
    leaf = Deployment(*"ab", watched=True)
    await leaf.say_ready(a=True, b=True)
    leaf.news["a"].put_nowait(LookupError("a bug"))
    await turns()
    for _ in range(10):
        await leaf.call()
    assert leaf.fakes["a"].calls == []
    assert "a cannot be watched" in caplog.text
    await leaf.pool.close()


# Replicas that come and go


async def test_a_replica_that_is_removed_finishes_its_calls_and_is_then_closed() -> None:
    leaf = Deployment("a")
    go = asyncio.Event()
    leaf.fakes["a"].act = after(go, replies)
    call = asyncio.create_task(leaf.call())
    await leaf.fakes["a"].began.wait()
    leaf.pool.set_addresses("b")
    await leaf.call()
    assert len(leaf.fakes["b"].calls) == 1
    assert not leaf.fakes["a"].is_closed
    go.set()
    assert (await call).text == "reply"
    await turns()
    assert leaf.fakes["a"].is_closed
    assert list(leaf.pool.transports) == ["b"]


async def test_a_replica_that_comes_back_while_it_leaves_keeps_its_connection() -> None:
    leaf = Deployment("a")
    kept = leaf.fakes["a"]
    kept.act = after(go := asyncio.Event(), replies)
    call = asyncio.create_task(leaf.call())
    await kept.began.wait()
    leaf.pool.set_addresses("b")
    leaf.pool.set_addresses("a")
    go.set()
    await call
    await turns()
    assert leaf.pool.transports == {"a": kept}
    assert not kept.is_closed


async def test_a_replica_that_goes_as_soon_as_it_has_come_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    leaf = Deployment(watched=True)
    leaf.pool.set_addresses("a")
    leaf.pool.set_addresses("b")
    await leaf.say_ready(b=True)
    assert (await leaf.call()).text == "reply"
    assert leaf.fakes["a"].is_closed
    assert caplog.records == []
    await leaf.pool.close()


async def test_an_address_said_twice_is_one_replica() -> None:
    leaf = Deployment("a", "a")
    assert list(leaf.pool.transports) == ["a"]


async def test_replicas_come_and_go_under_load_without_a_failed_call() -> None:
    class Works(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            await asyncio.sleep(0.0005)
            return request

    def connect(address: str) -> Transport:
        return LocalTransport(Dispatcher(Works(), timeout=LONG))

    pool = PoolTransport("a", connect, name="leaf", options=HandleOptions(retry=RetryOptions(attempts=1)))
    echo, stop, done = EchoClient(pool), asyncio.Event(), 0

    async def lane() -> None:
        nonlocal done
        while not stop.is_set():
            await echo.say(Note())
            done += 1

    def has_done(count: int) -> bool:
        return done >= count

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(lane())
        for addresses in ("abcd", "d", "ae", "bcde", "", "a") * 5:
            pool.set_addresses(addresses or "f")
            await until(partial(has_done, done + 40))
        stop.set()
    assert [replica.address for replica in pool.replicas] == ["a"]
    await pool.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Hedges


async def test_a_slow_attempt_is_joined_by_another_and_cancelled_when_that_one_wins() -> None:
    leaf = Deployment(*"ab", act=hangs, options=HEDGED)
    call, slow, other = await both_running(leaf)
    goes(other, replies)
    assert (await call).text == "reply"
    assert slow.cancelled == 1
    assert (len(slow.calls), len(other.calls)) == (1, 1)
    leaf.assert_nothing_left()
    marks = {replica.address: replica.bad for replica in leaf.pool.replicas}
    assert marks == {slow.address: 1.0, other.address: 0.0}, "the one that was overtaken stands out"


async def test_the_first_attempt_may_still_win() -> None:
    leaf = Deployment(*"ab", act=hangs, options=HEDGED)
    call, first, second = await both_running(leaf)
    goes(first, replies)
    assert (await call).text == "reply"
    assert second.cancelled == 1
    assert [replica.bad for replica in leaf.pool.replicas] == [0.0, 0.0], "nobody was overtaken"
    leaf.assert_nothing_left()


async def test_a_hedge_that_fails_does_not_fail_the_call() -> None:
    leaf = Deployment(*"ab", act=hangs, options=HEDGED)
    call, first, second = await both_running(leaf)
    goes(second, fails(Code.INTERNAL))
    await turns()
    assert not call.done()
    goes(first, replies)
    assert (await call).text == "reply"
    leaf.assert_nothing_left()


async def test_a_first_attempt_that_fails_waits_for_its_hedge() -> None:
    leaf = Deployment(*"ab", act=hangs, options=HEDGED)
    call, first, second = await both_running(leaf)
    goes(first, fails(Code.INTERNAL))
    await turns()
    assert not call.done()
    goes(second, replies)
    assert (await call).text == "reply"
    leaf.assert_nothing_left()


async def test_when_all_attempts_fail_the_call_fails_as_the_first_did() -> None:
    leaf = Deployment(*"ab", act=hangs, options=HEDGED)
    call, first, second = await both_running(leaf)
    goes(second, fails(Code.DATA_LOSS))
    await turns()
    goes(first, fails(Code.INTERNAL))
    with pytest.raises(ServiceError) as caught:
        await call
    assert caught.value.code == Code.DATA_LOSS
    leaf.assert_nothing_left()


async def test_an_error_that_is_the_request_s_own_ends_the_call_at_once() -> None:
    leaf = Deployment(*"ab", act=hangs, options=HEDGED)
    call, first, second = await both_running(leaf)
    goes(second, fails(Code.INVALID_ARGUMENT))
    with pytest.raises(ServiceError):
        await call
    assert first.cancelled == 1
    leaf.assert_nothing_left()


async def test_attempts_side_by_side_and_in_a_row_count_together() -> None:
    leaf = Deployment(*"abc", act=hangs, options=HEDGED)
    call, first, second = await both_running(leaf)
    for fake in leaf.fakes.values():
        fake.act = fails()
    for fake in (first, second):
        goes(fake, fails())
    with pytest.raises(ServiceError):
        await call
    assert leaf.attempts <= 5
    leaf.assert_nothing_left()


async def test_one_replica_is_not_asked_twice_at_once() -> None:
    leaf = Deployment("a", act=hangs, options=HEDGED)
    call = asyncio.create_task(leaf.call())
    await leaf.fakes["a"].began.wait()
    await asyncio.sleep(0.01)  # long after the hedge was due
    assert leaf.attempts == 1
    await cancelled(call)
    leaf.assert_nothing_left()


async def test_without_budget_there_is_no_hedge() -> None:
    leaf = Deployment(*"ab", act=hangs, options=replace(HEDGED, budget=BudgetOptions(reserve=0)))
    call = asyncio.create_task(leaf.call())
    await asyncio.sleep(0.01)  # long after the hedge was due
    assert leaf.attempts == 1
    await cancelled(call)


async def test_only_idempotent_calls_are_sent_twice() -> None:
    leaf = Deployment(*"ab", act=hangs, options=HEDGED)
    call = asyncio.create_task(leaf.pool.unary(ONCE, Note(), CALL))
    await asyncio.sleep(0.01)  # long after the hedge was due
    assert leaf.attempts == 1
    await cancelled(call)


async def both_running(leaf: Deployment) -> tuple[asyncio.Task[Note], Fake, Fake]:
    """A hedged call whose first two attempts wait to be told how they end: the call, the first, the second."""
    for fake in leaf.fakes.values():
        fake.act = told(fake)
    call = asyncio.create_task(leaf.call())
    await until(lambda: leaf.running)
    (first,) = leaf.running
    await until(lambda: len(leaf.running) == 2)
    (second,) = [fake for fake in leaf.running if fake is not first]
    return call, first, second


ENDS: dict[Fake, asyncio.Future[Act]] = {}


def told(fake: Fake) -> Act:
    ENDS[fake] = asyncio.get_running_loop().create_future()

    async def act() -> Note:
        end = await ENDS[fake]
        return await end()

    return act


def goes(fake: Fake, end: Act) -> None:
    ENDS.pop(fake).set_result(end)


# Giving up, and what is left


async def cancelled(call: asyncio.Task[Any]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("options", [None, HEDGED], ids=["one attempt", "two attempts"])
async def test_a_caller_that_gives_up_cancels_every_attempt(options: HandleOptions | None) -> None:
    leaf = Deployment(*"ab", act=hangs, options=options)
    call = asyncio.create_task(leaf.call())
    await until(lambda: len(leaf.running) == (1 if options is None else 2))
    await cancelled(call)
    assert sum(fake.cancelled for fake in leaf.fakes.values()) == leaf.attempts
    leaf.assert_nothing_left()
    assert [replica.bad for replica in leaf.pool.replicas] == [0.0, 0.0], "that says nothing about the replicas"
    await leaf.pool.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_stream_left_early_leaves_nothing() -> None:
    leaf = Deployment(*"ab")
    stream = leaf.pool.server_stream(REPEAT, Note(), CALL)
    assert (await anext(stream)).text == "reply"
    assert len(leaf.running) == 1
    assert leaf.pool.door.admission.running == 1
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator
    leaf.assert_nothing_left()


async def test_a_stream_whose_reader_is_cancelled_leaves_nothing() -> None:
    leaf = Deployment(*"ab", act=hangs)
    call = asyncio.create_task(read(leaf.pool.server_stream(REPEAT, Note(), CALL)))
    await until(lambda: leaf.running)
    await cancelled(call)
    leaf.assert_nothing_left()


async def test_more_calls_than_the_bulkhead_holds_are_refused_at_once() -> None:
    narrow = HandleOptions(bulkhead=AdmissionOptions(max_concurrency=2, max_queue=0))
    leaf = Deployment("a", act=hangs, options=narrow)
    calls = [asyncio.create_task(leaf.call()) for _ in range(2)]
    await turns()
    with pytest.raises(ServiceError, match="the handle on leaf is busy: 2 calls run") as caught:
        await leaf.call()
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    with pytest.raises(ServiceError, match="is busy"):
        await anext(leaf.pool.server_stream(REPEAT, Note(), CALL))
    await cancelled(calls.pop())
    leaf.fakes["a"].act = replies
    assert (await leaf.call()).text == "reply"
    await cancelled(calls.pop())
    leaf.assert_nothing_left()


async def test_close_ends_all_tasks_and_later_calls_fail() -> None:
    leaf = Deployment(*"abc", watched=True)
    await leaf.say_ready(a=True, b=True)
    await leaf.call()
    leaf.pool.set_addresses("bc")
    await leaf.pool.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert all(fake.is_closed for fake in leaf.fakes.values())
    with pytest.raises(ServiceError, match="no address"):
        await leaf.call()
    leaf.pool.set_addresses("a")
    assert leaf.pool.transports == {}
    await leaf.pool.close()


async def test_close_cancels_what_is_in_flight() -> None:
    cancels = 0

    class Waits(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            nonlocal cancels
            try:
                return await hangs()
            except asyncio.CancelledError:
                cancels += 1
                raise

    dispatcher = Dispatcher(Waits(), timeout=LONG)
    pool = PoolTransport("ab", lambda address: LocalTransport(dispatcher), name="leaf")
    calls = [asyncio.create_task(EchoClient(pool).say(Note())) for _ in range(4)]
    await until(lambda: dispatcher.in_flight == 4)
    await pool.close()
    await asyncio.wait(calls)
    assert cancels == 4
    assert all(call.cancelled() for call in calls)
    assert pool.replicas == ()
    assert asyncio.all_tasks() == {asyncio.current_task()}
