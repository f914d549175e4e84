"""Tasks that end with their owner, and threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def wait_closed(task: asyncio.Task[Any]) -> None:
    """Cancel a task unless it has ended, and wait for its end, whatever that is."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen, so that asyncio does not report it as lost


async def in_daemon_thread(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run a blocking function beside the event loop, in a thread that does not keep the process from ending.

    Cancelling the await abandons the thread: what it returns or raises later is dropped.
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
        except Exception as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True, name=getattr(function, "__name__", "work")).start()
    return await done


class time_limit:  # noqa: N801 - used like asyncio.timeout
    """`asyncio.timeout` for the path of every call: the same rules in fewer steps, and nothing to await.

    `with time_limit(seconds):` raises TimeoutError in place of the CancelledError with which it ends the block.
    """

    __slots__ = ("_cancelling", "_is_over", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_over = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # calls are handled in tasks
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = loop.call_later(max(self._seconds, 0), self._expire)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._is_over and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _expire(self) -> None:
        self._is_over = True
        self._task.cancel()
