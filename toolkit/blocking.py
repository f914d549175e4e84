"""Blocking code beside the event loop: functions in a model's own thread, plain generators and callbacks as async streams.

A stream's work runs no further ahead of its reader than it is told to.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, Generic, ParamSpec, TypeVar

from toolkit.tasks import in_executor, portable

log = logging.getLogger("toolkit")
P = ParamSpec("P")
T = TypeVar("T")
MAX_THREADS: Final = 64
"""Streams that run at once where no executor is given; those beyond wait for their turn."""
_threads: Final = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="blocking")


class ModelThread(ThreadPoolExecutor):
    """One thread in which a model computes for one call at a time, so that calls do not fight for the cores:

        self._thread = ModelThread()  # in __init__

        vectors = await self._thread.run(self._model.embeddings, sentences)

    Models that share a device may share it. As an `Executor` it serves `from_blocking` too. It needs no closing: it ends
    with the service that holds it.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1, thread_name_prefix="model")

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns or raises, in its turn. It sees the caller's context variables.

        A caller that gives up before its turn takes the work out of the queue; work that has begun goes on to its end.
        """
        return await in_executor(self, work, *args, **kwargs)


def from_blocking(
    source: Iterable[T] | Callable[[], Iterable[T]], *, ahead: int = 4, executor: Executor | None = None
) -> AsyncGenerator[T, None]:
    """The items of a blocking iterator, made in a thread: `async for token in from_blocking(model.tokens(prompt)): ...`

    `source` is an iterable, or a function that returns one and is called in the thread too. All of it runs in one thread and
    sees the caller's context variables. It waits when `ahead` items have not been read. What it raises is raised here, after
    the items before it.

    Leaving early (`aclose()`, or cancelling the reader) closes a generator at its next item, in its own thread, and waits
    for that: a model that was left computes nothing any more. `executor` says which threads may be used, so that one with a
    single thread lets one stream run at a time.
    """

    def push_all(push: Callable[[T], None]) -> None:
        items = iter(source if isinstance(source, Iterable) else source())
        try:
            for item in items:
                push(item)
        finally:
            if isinstance(items, Generator):
                items.close()

    return from_pushing(push_all, ahead=ahead, executor=executor)


def from_pushing(
    work: Callable[[Callable[[T], None]], Any], *, ahead: int = 4, executor: Executor | None = None
) -> AsyncGenerator[T, None]:
    """What blocking code hands to a callback, as a stream: `work(push)` runs in a thread, and each `push(item)` is an item.

    For transformers' streamers:

        def work(push):
            streamer = TextStreamer(tokenizer, skip_prompt=True)
            streamer.on_finalized_text = lambda text, stream_end=False: push(text)
            model.generate(**inputs, streamer=streamer)

    As `from_blocking` in all else: `push` returns when fewer than `ahead` items wait to be read, and once the reader has
    gone it raises what `except Exception` does not catch, which ends the work.
    """
    if ahead < 1:
        raise ValueError(f"ahead: {ahead} is not 1 or more")
    return _read(work, ahead, executor or _threads, contextvars.copy_context())


async def _read(
    work: Callable[[Callable[[T], None]], Any], ahead: int, executor: Executor, context: contextvars.Context
) -> AsyncGenerator[T, None]:
    buffer: _Buffer[T] = _Buffer(ahead)
    running = executor.submit(context.run, buffer.fill, work)
    try:
        while not await buffer.is_over():
            yield buffer.take()
        if buffer.failure is not None:
            raise buffer.failure
    finally:
        buffer.leave()
        if not running.cancel():
            await asyncio.wait([asyncio.wrap_future(running)])


class _ReaderGoneError(BaseException):
    """Ends work whose items nobody reads. No Exception, for the work is not to blame and must not catch it."""


class _Buffer(Generic[T]):
    """Between the thread that pushes and the task that takes."""

    def __init__(self, size: int) -> None:
        self.failure: Exception | None = None
        """What ended the work, once it is over."""
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._has_ended = False
        self._is_left = False
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    def fill(self, work: Callable[[Callable[[T], None]], Any]) -> None:
        """Run the work. In the thread, as `push` is."""
        try:
            work(self.push)
        except _ReaderGoneError:
            pass
        except BaseException as error:
            self.failure = portable(error)
            if self._is_left:
                log.error("blocking work failed when its reader had gone", exc_info=error)
        with self._changed, suppress(RuntimeError):  # the loop is closed: nobody waits
            self._has_ended = True
            self._wake()

    def push(self, item: T) -> None:
        with self._changed:
            if not self._is_left:
                self._items.append(item)
                self._wake()
            self._changed.wait_for(lambda: self._is_left or len(self._items) < self._size)
            if self._is_left:
                raise _ReaderGoneError

    async def is_over(self) -> bool:
        """Whether no item comes any more, once that is known."""
        while True:
            with self._changed:
                if self._items or self._has_ended:
                    return not self._items
                self._waiting = self._loop.create_future()
            await self._waiting

    def take(self) -> T:
        with self._changed:
            self._changed.notify_all()
            return self._items.popleft()

    def leave(self) -> None:
        """Nobody reads any more."""
        with self._changed:
            self._is_left = True
            self._changed.notify_all()

    def _wake(self) -> None:
        if self._waiting is not None:
            self._loop.call_soon_threadsafe(_settle, self._waiting)
            self._waiting = None


def _settle(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
