"""Tasks that end with their owner, and threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
TICK: Final = 0.001
"""uvloop's clock counts in these."""


async def wait_closed(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks that have not ended, and wait for the end of all, whatever that is."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen, so that asyncio does not report it as lost


def is_cancelling() -> bool:
    """Whether somebody cancels the current task: else a CancelledError is of something that the task waited for."""
    task = asyncio.current_task()
    return task is None or bool(task.cancelling())


async def in_daemon_thread(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run a blocking function beside the event loop, in a thread that does not keep the process from ending.

    Cancelling the await abandons the thread: what it returns or raises later is dropped. What no event loop can carry,
    SystemExit and StopIteration, comes as RuntimeError.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # None only where T is None
        else:
            done.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = context.run(function, *args, **options)
        except BaseException as error:
            failure = portable(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True, name=getattr(function, "__name__", "work")).start()
    return await done


async def in_executor(executor: Executor, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run a blocking function in a thread of `executor`, in its turn.

    Cancelling the await takes it out of the queue, or abandons it. What no event loop can carry comes as RuntimeError.
    """
    context = contextvars.copy_context()

    def work() -> T:
        try:
            return context.run(function, *args, **options)
        except BaseException as error:
            raise portable(error) from error.__cause__

    return await asyncio.get_running_loop().run_in_executor(executor, work)


def portable(error: BaseException) -> Exception:
    """What a thread raised, as an event loop can carry it."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    portable = RuntimeError(f"{type(error).__name__} {error}".rstrip())
    portable.__cause__ = error
    return portable


class time_limit:  # noqa: N801 - used like asyncio.timeout
    """`asyncio.timeout` for the path of every call: the same rules in fewer steps, and nothing to await.

    `with time_limit(seconds):` raises TimeoutError in place of the CancelledError with which it ends the block. It is
    never early, though uvloop's timers may be: what the limit was made from has passed then.
    """

    __slots__ = ("_at", "_cancelling", "_is_over", "_loop", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # calls are handled in tasks
        self._task = task
        self._loop = loop
        self._cancelling = task.cancelling()
        self._at = time.monotonic() + self._seconds
        self._timer = loop.call_later(max(self._seconds, 0), self._expire)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._is_over and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _expire(self) -> None:
        left = self._left()
        if left > 0:
            self._timer = self._loop.call_later(max(left, TICK), self._expire)
            return
        self._is_over = True
        self._task.cancel()

    def _left(self) -> float:
        return self._at - time.monotonic()


class idle_limit(time_limit):  # noqa: N801 - as above
    """`time_limit` for each pause of a block that says when one begins, in `since`, and when it is over: None."""

    __slots__ = ("since",)

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.since: float | None = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether this is what ended the block."""
        return self._is_over

    def _left(self) -> float:
        return self._seconds if self.since is None else self.since + self._seconds - time.monotonic()
