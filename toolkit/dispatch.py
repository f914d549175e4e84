"""`Dispatcher`: (method, request, context) → reply, for any transport. What holds for every call is done here, once."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

from toolkit.batching import Batcher
from toolkit.context import Context, ambient
from toolkit.deadline import Deadline
from toolkit.door import Door
from toolkit.errors import Code, ServiceError, StartError, internal
from toolkit.method import Contract, Method
from toolkit.metrics import Calls
from toolkit.policy.admission import ADMIT, AdmissionOptions, Admit, Refuse, Ticket
from toolkit.service import Service
from toolkit.tasks import idle_limit, is_cancelling, time_limit
from toolkit.transport.base import CallerGoneError

log = logging.getLogger("toolkit")
DEFAULT_ADMISSION = AdmissionOptions()
NEVER = 86400.0
"""Seconds. A stream has a deadline before."""
Send = Callable[[Any], Awaitable[None]]
NOTHING_SAID: Final[Mapping[str, Mapping[str, Any]]] = {}


class Dispatcher:
    """Runs the handlers of one service. Each call must come in a task of its own.

    Everything that a handler raises leaves as ServiceError: its own as it is, anything else as INTERNAL with an id under
    which the log holds the traceback.
    """

    def __init__(
        self,
        service: Service,
        *,
        timeout: float,
        idle_timeout: float | None = None,
        forward: Iterable[str] = (),
        admission: AdmissionOptions = DEFAULT_ADMISSION,
        batching: Mapping[str, Mapping[str, Any]] = NOTHING_SAID,
        name: str = "",
    ) -> None:
        """`timeout`: seconds for a call whose caller sets no deadline; `idle_timeout`: for a stream to make its next item, None:
        until its deadline. `batching`: batched method → limits other than its decorator's. Raises StartError for what is none."""
        self.contract = service.__contract__
        self.in_flight = 0
        """Calls that are being handled."""
        self._idle = asyncio.Event()
        self._handlers = {method.path: getattr(service, method.attribute) for method in self.contract.methods}
        self.batchers = {path: found for path, found in self._handlers.items() if isinstance(found, Batcher)}
        """Path of a batched method → its batches."""
        _override(self.batchers, batching, self.contract)
        self._timeout = timeout
        self._idle_timeout = NEVER if idle_timeout is None else idle_timeout
        name = name or type(service).__name__
        self._door = Door(admission, name)
        self._doors = {path: _batch_door(found, name, path) for path, found in self.batchers.items()}
        self._forward = frozenset(forward)
        self._detached: set[asyncio.Task[None]] = set()
        self.expired = 0
        """Calls whose deadline had passed before their handler began."""
        self.calls = {method.path: Calls() for method in self.contract.methods}
        """Path of a method → what became of its calls."""
        self._foreign = Calls()
        """Of methods that are not in the contract."""

    @property
    def door(self) -> Door:
        """Where calls wait, or are refused when they are too many or too late."""
        return self._door

    @property
    def doors(self) -> Iterable[Door]:
        """That one, and those of the batched methods."""
        return (self._door, *self._doors.values())

    async def reply(self, method: Method[Any, Any], request: Any, context: Context) -> Any:
        """Answer a method with one reply; `request` is an async iterator where the client streams."""
        calls = self.calls.get(method.path, self._foreign)
        with calls.counted():
            limit = self._begin(context)
            door = self._doors.get(method.path, self._door)
            decision = door.enter_nowait(limit, method.path)
            if decision is ADMIT:
                calls.at_once += 1
            else:
                await self._wait(door, decision, limit, calls)
            start, seconds, is_late = time.monotonic(), None, False
            try:
                with time_limit(limit.remaining()):
                    reply = await self._handlers[method.path](request, context)
                seconds = time.monotonic() - start
            except Exception as error:
                is_late = _is_late(error, limit)
                raise self._failure(error, method, limit) from error
            except asyncio.CancelledError as error:
                if _is_cancelled(error):
                    raise
                raise internal(error) from error
            finally:
                door.leave(seconds, is_late=is_late, kind=method.path)
                self._leave()
            self._check_reply(method, reply)
            return reply

    async def stream(self, method: Method[Any, Any], request: Any, context: Context, send: Send) -> None:
        """Answer a method with a stream of replies: `send` takes one after the other, and returns when it wants the next."""
        calls = self.calls.get(method.path, self._foreign)
        with calls.counted():
            limit = self._begin(context)
            decision = self._door.enter_nowait(limit, method.path)
            if decision is ADMIT:
                calls.at_once += 1
            else:
                await self._wait(self._door, decision, limit, calls)
            start, seconds, is_late = time.monotonic(), None, False
            replies: Any = None
            idle = idle_limit(self._idle_timeout)
            try:
                with time_limit(limit.remaining()), idle:
                    replies = self._handlers[method.path](request, context)
                    async for reply in replies:
                        if type(reply) is not method.reply:
                            self._check_reply(method, reply)
                        idle.since = None
                        await send(reply)
                        idle.since = time.monotonic()
                seconds = time.monotonic() - start
            except Exception as error:
                is_late = _is_late(error, limit)
                if idle.is_over and isinstance(error, TimeoutError):
                    raise self._stalled(method) from error
                raise self._failure(error, method, limit) from error
            except asyncio.CancelledError as error:
                if _is_cancelled(error):
                    raise
                raise internal(error) from error
            finally:
                try:
                    if hasattr(replies, "aclose"):
                        await replies.aclose()
                finally:
                    self._door.leave(seconds, is_late=is_late, kind=method.path)
                    self._leave()

    def refused(self, method: Method[Any, Any], error: ServiceError) -> None:
        """A call came whose request cannot be read."""
        calls = self.calls.get(method.path, self._foreign)
        calls.started += 1
        calls.end(error.code, 0.0)

    @property
    def load(self) -> tuple[int, int, float]:
        """Calls that run, calls that wait for a turn or for a batch, and about how many seconds a new one would wait."""
        admission, batchers = self._door.admission, self.batchers.values()
        in_batches = sum(door.admission.running for door in self._doors.values())
        waiting = sum(each.queued for each in batchers)
        wait = max(admission.wait, *(each.wait for each in batchers)) if batchers else admission.wait
        return admission.running + in_batches - waiting, admission.queued + waiting, wait

    async def wait_idle(self, timeout: float) -> bool:
        """Return once no call is being handled; False when some still are after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.in_flight:  # another may have begun by the time that we are told
                    self._idle.clear()
                    await self._idle.wait()
        return not self.in_flight

    def _leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    def _begin(self, context: Context) -> Deadline:
        """The call is one of those that are handled from now on. Returns its deadline."""
        limit = context.deadline or Deadline.after(self._timeout)
        if limit.is_expired():
            self.expired += 1
            raise ServiceError(Code.DEADLINE_EXCEEDED, "the deadline passed before the call was handled")
        context.deadline = limit
        context.answered_by(self._detach, self._forward)
        ambient.set(context)
        self.in_flight += 1
        return limit

    async def _wait(self, door: Door, decision: Admit | Ticket | Refuse, limit: Deadline, calls: Calls) -> None:
        """Until it is the call's turn."""
        start = time.monotonic()
        try:
            await door.wait(decision, limit)
        except BaseException:
            self._leave()
            raise
        calls.waited.add(time.monotonic() - start)

    def _detach(self, context: Context, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        inherited = contextvars.copy_context()
        inherited.run(ambient.set, context.without_deadline())

        def end(task: asyncio.Task[None]) -> None:
            self._detached.discard(task)
            work.close()  # where it was cancelled before its first step
            self._leave()

        self.in_flight += 1
        task = asyncio.get_running_loop().create_task(self._outlive(work), context=inherited)
        self._detached.add(task)
        task.add_done_callback(end)
        return task

    async def _outlive(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            with time_limit(self._timeout):
                await work
        except Exception as error:
            log.error("detached work failed", exc_info=error)

    def _check_reply(self, method: Method[Any, Any], reply: Any) -> None:
        if type(reply) is not method.reply:
            raise internal(TypeError(f"{method.path} must return {method.reply.__name__}, not {type(reply).__name__}"))

    def _stalled(self, method: Method[Any, Any]) -> ServiceError:
        return ServiceError(Code.DEADLINE_EXCEEDED, f"{method.path} sent no item for {self._idle_timeout:g} s")

    def _failure(self, error: Exception, method: Method[Any, Any], limit: Deadline) -> ServiceError:
        if isinstance(error, ServiceError):
            return error
        if _is_late(error, limit):
            return ServiceError(Code.DEADLINE_EXCEEDED, f"{method.path} took longer than the deadline allows")
        return internal(error)


def _batch_door(batcher: Batcher, name: str, path: str) -> Door:
    """Calls that wait for a batch take no turn of those that run: else they would keep others out, and the batch small."""
    options = AdmissionOptions(max_concurrency=batcher.options.capacity, max_queue=0)
    return Door(options, f"{name} ({path.rpartition('/')[2]})")


def _override(batchers: Mapping[str, Batcher], said: Mapping[str, Mapping[str, Any]], contract: Contract) -> None:
    named = {m.attribute: m.path for m in contract.methods} | {m.name: m.path for m in contract.methods}
    for name, limits in said.items():
        batcher = batchers.get(named.get(name, ""))
        if batcher is None:
            raise StartError(
                f"batching: {name} is no batched method of {contract.name}; decorate its handler with @batched"
            )
        try:
            batcher.override(limits)
        except (TypeError, ValueError) as error:
            raise StartError(f"batching: {name}: {error}") from None


def _is_late(error: Exception, limit: Deadline) -> bool:
    """Whether it is our own time limit that ended the handler."""
    return isinstance(error, TimeoutError) and limit.is_expired()


def _is_cancelled(error: asyncio.CancelledError) -> bool:
    """Whether somebody cancelled the call. A handler may also await what others have cancelled: that is its own failure, and
    a server that takes it for the end of the call would leave the caller waiting.
    """
    return isinstance(error, CallerGoneError) or is_cancelling()
