"""Time limits that lose to a cancellation from outside, and threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from toolkit.tasks import in_daemon_thread, time_limit, wait_closed

LONG = 3600.0
NOW = 0.0
"""Ends the block at its first await that has to wait."""


async def forever() -> None:
    await asyncio.Event().wait()


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def turns(count: int = 3) -> None:
    """Let the event loop run what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


# time_limit


@pytest.mark.parametrize("seconds", [NOW, 0.001, -5.0])
async def test_a_block_that_takes_too_long_ends_in_a_timeout(seconds: float) -> None:
    with pytest.raises(TimeoutError), time_limit(seconds):
        await forever()


async def test_a_block_that_is_quick_enough_ends_as_it_would() -> None:
    with time_limit(LONG):
        await asyncio.sleep(0)
    with pytest.raises(LookupError), time_limit(LONG):
        raise LookupError


async def test_a_block_that_never_waits_is_never_ended() -> None:
    with time_limit(NOW):
        done = True
    assert done


async def test_a_limit_does_nothing_after_its_block() -> None:
    with time_limit(NOW):
        pass
    await turns()
    assert this_task().cancelling() == 0


async def test_the_task_counts_as_not_cancelled_after_a_timeout() -> None:
    with pytest.raises(TimeoutError), time_limit(NOW):
        await forever()
    assert this_task().cancelling() == 0
    await turns()


async def test_the_cause_of_the_timeout_is_the_cancellation() -> None:
    with pytest.raises(TimeoutError) as caught, time_limit(NOW):
        await forever()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_a_timeout_that_the_block_raises_itself_is_its_own() -> None:
    mine = TimeoutError("mine")
    with pytest.raises(TimeoutError) as caught, time_limit(LONG):
        raise mine
    assert caught.value is mine


async def outcome(
    work: Coroutine[Any, Any, Any], at_start: Callable[[asyncio.Task[Any]], object]
) -> BaseException | None:
    """How a task ends to which `at_start` did something while it waited."""
    task = asyncio.create_task(work)
    await turns(1)
    at_start(task)
    await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception()


async def limited(seconds: float) -> None:
    with time_limit(seconds):
        await forever()


async def test_a_cancellation_from_outside_is_a_cancellation() -> None:
    assert isinstance(await outcome(limited(LONG), lambda task: task.cancel()), asyncio.CancelledError)


async def test_a_cancellation_from_outside_wins_over_an_expiry_at_the_same_moment() -> None:
    """Both are asked for before the task runs again, in either order."""

    async def cancelled_then_expired() -> None:
        with time_limit(NOW):
            this_task().cancel()
            time.sleep(0.002)  # noqa: ASYNC251 - the limit passes while the task runs
            await forever()

    async def expired_then_cancelled() -> None:
        with time_limit(NOW):
            asyncio.get_running_loop().call_later(0, this_task().cancel)
            await forever()

    for work in (cancelled_then_expired(), expired_then_cancelled()):
        assert isinstance(await outcome(work, lambda task: None), asyncio.CancelledError)


async def test_a_cancellation_while_the_block_cleans_up_wins() -> None:
    cleaning = asyncio.Event()

    async def work() -> None:
        with time_limit(NOW):
            try:
                await forever()
            finally:
                cleaning.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await forever()

    task = asyncio.create_task(work())
    await cleaning.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled() or task.cancelling()


async def test_a_task_that_was_cancelled_before_can_still_be_limited() -> None:
    """As in the clean-up of a cancelled task."""

    async def work() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            with pytest.raises(TimeoutError), time_limit(NOW):
                await forever()
            assert this_task().cancelling() == 1
            raise
        return "never"

    assert isinstance(await outcome(work(), lambda task: task.cancel()), asyncio.CancelledError)


async def test_the_inner_of_two_limits_ends_the_inner_block_alone() -> None:
    with time_limit(LONG):
        with pytest.raises(TimeoutError), time_limit(NOW):
            await forever()
        await turns()
    assert this_task().cancelling() == 0


async def test_the_outer_of_two_limits_ends_both_blocks() -> None:
    seen: list[type[BaseException]] = []

    async def inner() -> None:
        try:
            await limited(LONG)
        except BaseException as error:
            seen.append(type(error))
            raise

    with pytest.raises(TimeoutError), time_limit(NOW):
        await inner()
    assert seen == [asyncio.CancelledError]
    assert this_task().cancelling() == 0


async def test_two_limits_that_pass_at_the_same_moment_end_in_one_timeout() -> None:
    with pytest.raises(TimeoutError), time_limit(NOW), time_limit(NOW):
        await forever()
    await turns()
    assert this_task().cancelling() == 0


async def test_a_block_that_swallows_the_cancellation_goes_on() -> None:
    with time_limit(NOW):
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        went_on = True
    assert went_on
    assert this_task().cancelling() == 0


async def test_a_block_that_fails_while_it_is_ended_fails_with_its_own_error() -> None:
    async def fail() -> None:
        try:
            await forever()
        finally:
            raise LookupError

    with pytest.raises(LookupError), time_limit(NOW):
        await fail()
    assert this_task().cancelling() == 0


async def test_an_expiry_at_the_moment_of_the_result_is_one_or_the_other() -> None:
    """The awaited future has its result already when the limit passes: the task must not be left half cancelled."""
    loop = asyncio.get_running_loop()
    for is_result_first in (True, False):
        ready = loop.create_future()
        with contextlib.suppress(TimeoutError):
            await _limited_wait(ready, is_result_first=is_result_first)
        await turns()
        assert this_task().cancelling() == 0


async def _limited_wait(ready: asyncio.Future[None], *, is_result_first: bool) -> None:
    loop = asyncio.get_running_loop()
    if is_result_first:
        loop.call_later(0, ready.set_result, None)
    with time_limit(NOW):
        if not is_result_first:
            loop.call_later(0, _settle, ready)
        await ready


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def test_a_limit_is_never_early_whatever_the_event_loop() -> None:
    """uvloop's timers are, by up to two milliseconds; what the limit was made from must have passed."""

    async def early(seconds: float) -> bool:
        end = time.monotonic() + seconds
        try:
            with time_limit(end - time.monotonic()):
                await forever()
        except TimeoutError:
            return time.monotonic() < end
        raise AssertionError

    async def count() -> int:
        return sum(await asyncio.gather(*(early(0.01 + n * 0.00037) for n in range(100))))

    assert uvloop.run(count()) == 0
    assert asyncio.run(count()) == 0


# in_daemon_thread


async def test_a_thread_s_result_and_error_come_back() -> None:
    assert await in_daemon_thread(lambda a, b: a + b, 1, b=2) == 3
    assert [await in_daemon_thread(list)] == [[]]
    with pytest.raises(LookupError, match="mine"):
        await in_daemon_thread(_raise, LookupError("mine"))


@pytest.mark.parametrize("error", [SystemExit(3), StopIteration(3), KeyboardInterrupt(3), GeneratorExit(3)])
async def test_an_error_that_no_event_loop_can_carry_comes_back_too(error: BaseException) -> None:
    with pytest.raises(RuntimeError, match=f"^{type(error).__name__} 3$") as caught:
        await in_daemon_thread(_raise, error)
    assert caught.value.__cause__ is error


def _raise(error: BaseException) -> None:
    raise error


async def test_the_event_loop_runs_meanwhile() -> None:
    release = threading.Event()
    work = asyncio.create_task(in_daemon_thread(release.wait))
    await turns()
    release.set()
    assert await work is True


async def test_context_variables_reach_the_thread() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")
    assert await in_daemon_thread(variable.get) == "mine"


async def test_an_abandoned_thread_s_error_is_dropped() -> None:
    release, ended = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail() -> None:
        release.wait()
        loop.call_soon_threadsafe(ended.set)
        raise LookupError

    work = asyncio.create_task(in_daemon_thread(fail))
    await turns()
    await wait_closed(work)
    release.set()
    await ended.wait()
    assert work.cancelled()


def test_a_thread_that_outlives_its_loop_says_nothing() -> None:
    began, release = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        began.set()
        release.wait()

    async def abandon() -> None:
        task = asyncio.create_task(in_daemon_thread(work))
        await asyncio.to_thread(began.wait)
        await wait_closed(task)

    asyncio.run(abandon())
    release.set()
    threads[0].join()  # an exception in it would be a warning, and so a failure of this test
    assert threads[0].daemon


# wait_closed


async def test_wait_closed_cancels_and_waits_for_the_end() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await forever()
        finally:
            await turns()
            ended = True

    task = asyncio.create_task(work())
    await turns()
    await wait_closed(task)
    assert ended


async def test_wait_closed_takes_any_end() -> None:
    async def fail() -> None:
        raise LookupError

    for task in (asyncio.create_task(fail()), asyncio.create_task(turns())):
        await asyncio.wait([task])
        await wait_closed(task)
