"""`@batched`: a handler that takes many requests at once, while each of its callers sends one. The event loop's side of
`policy.batching`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context as Variables
from dataclasses import replace
from inspect import iscoroutinefunction
from math import inf
from types import CoroutineType
from typing import Any, Final, TypeVar

from toolkit.context import ALWAYS_FORWARDED, REQUEST_ID, Context, MetadataPairs, ambient
from toolkit.deadline import Deadline
from toolkit.errors import Code, ServiceError, internal
from toolkit.metrics import SECONDS, SIZES, Histogram
from toolkit.policy.batching import Batch, BatchFigures, Batching, BatchOptions, Item
from toolkit.tasks import TICK, in_executor, is_cancelling

log = logging.getLogger("toolkit")
S = TypeVar("S")
Request = TypeVar("Request")
Reply = TypeVar("Reply")
LONGEST_ID: Final = 512
"""Characters of the request ids that a batch sends on."""


class BatchContext(Context):
    """The calls of one batch, seen from its handler.

    Calls that the handler makes have the latest of their deadlines and carry all of their request ids, joined by commas.
    Other metadata goes on where all agree, and the trace is that of the first. `reply_metadata` goes to all callers.
    """

    __slots__ = ("_gone", "calls")

    def __init__(self, calls: Sequence[Context]) -> None:
        super().__init__(calls[0].method, deadline=_latest(calls))
        self.calls = tuple(calls)
        """The context of each request, in their order."""
        self._forward, self._detach = calls[0]._forward, calls[0]._detach
        self._gone = 0

    @property
    def is_abandoned(self) -> bool:
        """No caller waits any more. A handler in a thread, which nobody can cancel, may look, and stop."""
        return self._gone == len(self.calls)

    @property
    def forwarded(self) -> MetadataPairs:
        if self._forwarded is None:
            self._forwarded = _merged([call.forwarded for call in self.calls])
        return self._forwarded

    def leave(self) -> bool:
        """One caller waits no more. True when it was the last."""
        self._gone += 1
        return self.is_abandoned


def batched(
    *,
    max_size: int = 32,
    max_delay: float = 0.005,
    pad_by: Callable[[Any], Hashable] | None = None,  # any: type checkers give a lambda no better
    cost: Callable[[Any], float] | None = None,
    max_cost: float | None = None,
    max_queue: int | None = None,
    concurrency: int = 1,
) -> Callable[
    [
        Callable[
            [S, list[Request], BatchContext],
            Sequence[Reply | ServiceError] | Awaitable[Sequence[Reply | ServiceError]],
        ]
    ],
    Callable[[S, Request, Context], CoroutineType[Any, Any, Reply]],
]:
    """A handler over lists: `@batched(max_size=16)` on `async def score(self, requests: list[Pair], context: BatchContext)`.

    It returns a list with a reply for each request, in their order; a ServiceError in the place of a reply fails that call
    alone. A plain `def` runs in a thread of its own, an `async def` in the event loop. Callers see the method as the .proto
    has it, and batches form across all of them. The graph file may change the limits: `batching: {score: {max_size: 8}}`.

    `max_size`: requests of a batch. `max_delay`: seconds that an idle model waits for more, where more are expected; where
    callers come one by one, nobody waits. `pad_by`: only requests for which it returns the same share a batch, so that short
    texts are not padded to the length of long ones; see `size_class`. `cost` and `max_cost`: what a request counts, and what
    those of a batch may count together, tokens for example; one that counts more runs alone. Both functions see each
    request when it comes, in the event loop: let them be quick. What they raise fails that call alone. `max_queue`: requests
    that wait at most, further ones are refused; by default four batches, and 128 at least. `concurrency`: batches at once.
    """
    if (cost is None) != (max_cost is None):
        raise ValueError("cost and max_cost belong together: give both")
    options = BatchOptions(
        max_size=max_size,
        max_delay=max_delay,
        max_cost=inf if max_cost is None else max_cost,
        max_queue=max_queue,
        concurrency=concurrency,
    )
    return lambda handler: BatchedHandler(handler, options, pad_by, cost)  # type: ignore[return-value]  # once bound it is


def size_class(length: int) -> int:
    """For `pad_by`: the same for lengths within a factor of two, 9 to 16 for example, so that less than half is padding."""
    return max(length - 1, 0).bit_length()


class BatchedHandler:
    """What `@batched` leaves in a class; an instance has a `Batcher` in its place."""

    def __init__(
        self,
        handler: Callable[..., Any],
        options: BatchOptions,
        pad_by: Callable[[Any], Hashable] | None,
        cost: Callable[[Any], float] | None,
    ) -> None:
        self.handler = handler
        self.options = options
        self.pad_by = pad_by
        self.cost = cost
        self.__doc__ = handler.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._place = f"@batched {owner.__qualname__}.{name}"

    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        found = vars(instance)
        if self._place not in found:
            found[self._place] = Batcher(self, instance)
        return found[self._place]


class Batcher:
    """One batched method of one service: call it with one request, as its handle does."""

    def __init__(self, declared: BatchedHandler, service: object) -> None:
        self._pad_by = declared.pad_by
        self._cost = declared.cost
        self._handler = declared.handler.__get__(service)
        self._is_async = iscoroutinefunction(declared.handler)
        self._waiting: Batching[_Call] = Batching(declared.options)
        self._worker: ThreadPoolExecutor | None = None
        self.waited, self.sizes, self.computed = Histogram(SECONDS), Histogram(SIZES), Histogram(SECONDS)
        """What requests have waited; requests of a batch, and seconds that it took, of those that were answered."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._woken: asyncio.AbstractEventLoop | None = None

    @property
    def options(self) -> BatchOptions:
        return self._waiting.options

    @property
    def figures(self) -> BatchFigures:
        """What became of the requests; what the latest batches took."""
        return self._waiting.figures

    @property
    def queued(self) -> int:
        """Requests that wait for a batch."""
        return len(self._waiting)

    @property
    def wait(self) -> float:
        """About how many seconds the full batches take that would run before the one of a new request."""
        return self._waiting.wait

    @property
    def running(self) -> int:
        """Batches that are being run."""
        return self._waiting.running

    def override(self, said: Mapping[str, Any]) -> None:
        """Other limits than the decorator's, before the first call. Raises ValueError."""
        if "max_cost" in said and self._cost is None:
            raise ValueError("max_cost: there is no cost function; give one to @batched")
        self._waiting = Batching(replace(self.options, **said))

    async def __call__(self, request: Any, context: Context) -> Any:
        call = _Call(
            request,
            context,
            key=None if self._pad_by is None else self._pad_by(request),
            cost=1.0 if self._cost is None else self._cost(request),
            expires_at=inf if context.deadline is None else context.deadline.at,
        )
        self._waiting.add(call)
        self._wake(call.reply.get_loop())
        try:
            return await call.reply
        except asyncio.CancelledError:
            self._leave(call)
            raise

    def _leave(self, call: _Call) -> None:
        """The caller has gone. The last one of a batch takes it along; a thread cannot be ended, and is waited for."""
        if call.reply.done() and not call.reply.cancelled():
            call.reply.exception()  # seen, so that asyncio does not report it as lost
        elif not self._waiting.remove(call) and call.batch is not None and call.batch.leave() and self._is_async:
            assert call.task is not None  # it has a batch
            # not at once: a task that is cancelled before its first step takes none
            call.reply.get_loop().call_soon(call.task.cancel)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look for a batch once all have come that come at this moment."""
        if self._woken is not loop:
            self._woken = loop
            loop.call_soon(self._start_due, loop, context=Variables())

    def _start_due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._woken = None
        if self._timer is not None:
            self._timer.cancel()
        while (wait := self._waiting.due()) == 0:
            self._start(self._waiting.take(), loop)
        if wait is not None:
            self._timer = loop.call_later(max(wait, TICK), self._start_due, loop, context=Variables())

    def _start(self, batch: Batch[_Call], loop: asyncio.AbstractEventLoop) -> None:
        for call in batch.late:
            call.fail(_too_late(call))
        if batch.items:
            context = BatchContext([call.context for call in batch.items])
            task = loop.create_task(self._run(batch, context), context=Variables())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            taken_at = batch.items[0].arrived_at + batch.queued
            for call in batch.items:
                call.batch, call.task = context, task
                self.waited.add(taken_at - call.arrived_at)

    async def _run(self, batch: Batch[_Call], context: BatchContext) -> None:
        calls, seconds = batch.items, None
        ambient.set(context)
        start = time.monotonic()
        try:
            replies = await self._compute([call.request for call in calls], context)
            seconds = time.monotonic() - start
            _answer(calls, replies, context)
        except Exception as error:
            _fail(calls, error if isinstance(error, ServiceError) else internal(error))
        except asyncio.CancelledError as error:
            if context.is_abandoned or is_cancelling():
                _cancel(calls)
                raise
            _fail(calls, internal(error))
        finally:
            self._waiting.finished(batch, seconds)
            self._wake(asyncio.get_running_loop())
            if seconds is not None:
                self.sizes.add(len(calls))
                self.computed.add(seconds)
            if seconds is not None and log.isEnabledFor(logging.DEBUG):
                what = f"{context.method.path}: a batch of {len(calls)}, {batch.queued:.4f} s queued, {seconds:.4f} s computed"
                log.debug("%s; request %s", what, context.request_id)

    async def _compute(self, requests: list[Any], context: BatchContext) -> Any:
        if self._is_async:
            return await self._handler(requests, context)
        if self._worker is None:
            name = context.method.attribute
            self._worker = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix=name)
        return await in_executor(self._worker, self._handler, requests, context)


class _Call(Item):
    """A request on its way through a batch."""

    __slots__ = ("batch", "context", "reply", "request", "task")

    def __init__(self, request: Any, context: Context, *, key: Hashable, cost: float, expires_at: float) -> None:
        super().__init__(key=key, cost=cost, expires_at=expires_at)
        self.request = request
        self.context = context
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.batch: BatchContext | None = None
        self.task: asyncio.Task[None] | None = None

    def fail(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


def _answer(calls: Sequence[_Call], replies: Any, context: BatchContext) -> None:
    """Each call gets what stands in its place. Raises TypeError where the list cannot be trusted."""
    what, wanted = context.method.path, context.method.reply
    if not isinstance(replies, list | tuple) or len(replies) != len(calls):
        found = f"{len(replies)}" if isinstance(replies, list | tuple) else type(replies).__name__
        raise TypeError(f"{what} is batched: {len(calls)} requests need a list of {len(calls)} replies, not {found}")
    for place, reply in enumerate(replies):
        if type(reply) is not wanted and not isinstance(reply, Exception):
            raise TypeError(
                f"{what} is batched: reply {place} must be {wanted.__name__} or an error, not {type(reply).__name__}"
            )
    for call, reply in zip(calls, replies, strict=True):
        call.context.reply_metadata.update(context.reply_metadata)
        if isinstance(reply, Exception):
            call.fail(reply if isinstance(reply, ServiceError) else internal(reply))
        elif not call.reply.done():
            call.reply.set_result(reply)


def _fail(calls: Iterable[_Call], error: ServiceError) -> None:
    """Each call gets an error of its own, for each adds its own traceback."""
    for call in calls:
        call.fail(
            ServiceError(error.code, error.message, error.details, path=error.path, retry_after=error.retry_after)
        )


def _cancel(calls: Iterable[_Call]) -> None:
    for call in calls:
        call.reply.cancel()


def _too_late(call: _Call) -> ServiceError:
    what = call.context.method.path
    deadline = call.context.deadline
    if deadline is not None and deadline.is_expired():
        return ServiceError(Code.DEADLINE_EXCEEDED, f"the deadline passed in the queue of {what}")
    return ServiceError(
        Code.RESOURCE_EXHAUSTED, f"{what} is too busy to answer before the deadline", retry_after=-1.0, unseen=True
    )


def _latest(calls: Iterable[Context]) -> Deadline | None:
    found = None
    for call in calls:
        if call.deadline is None:
            return None
        if found is None or call.deadline.at > found.at:
            found = call.deadline
    return found


def _merged(sent: Sequence[MetadataPairs]) -> MetadataPairs:
    """What goes on with the calls of a batch."""
    first = sent[0]
    if all(pairs == first for pairs in sent):
        return first
    agreed = set(first).intersection(*sent)
    kept = [pair for pair in first if pair[0] != REQUEST_ID and (pair in agreed or pair[0] in ALWAYS_FORWARDED)]
    ids = dict.fromkeys(str(value) for pairs in sent for key, value in pairs if key == REQUEST_ID)
    return ((REQUEST_ID, _joined(list(ids))), *kept)


def _joined(ids: Sequence[str]) -> str:
    """As many as fit, and how many do not."""
    text = ids[0]
    for place, ident in enumerate(ids[1:], 1):
        longer = f"{text},{ident}"
        if len(longer) > LONGEST_ID:
            return f"{text},+{len(ids) - place}"
        text = longer
    return text


def batched_methods(service: type) -> list[str]:
    """The names of a class's batched handlers."""
    found: dict[str, object] = {}
    for cls in reversed(service.__mro__):
        found |= vars(cls)
    return [name for name, value in found.items() if isinstance(value, BatchedHandler)]
