"""One handle over the replicas of a deployment: balancing, retries, hedging and a bulkhead, for whatever carries the calls.

The decisions are those of `policy`; here they meet the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

from toolkit.door import Door
from toolkit.errors import Code, ServiceError, StartError
from toolkit.method import Method
from toolkit.metrics import Calls
from toolkit.policy.admission import AdmissionOptions
from toolkit.policy.balance import BalanceOptions, Balancer
from toolkit.policy.hedge import HedgeOptions, HedgePolicy
from toolkit.policy.outlier import is_fault
from toolkit.policy.replica import Replica
from toolkit.policy.retry import BudgetOptions, Failure, RetryBudget, RetryOptions, RetryPolicy
from toolkit.tasks import wait_closed
from toolkit.transport.base import Call, Transport
from toolkit.transport.names import Names

log = logging.getLogger("toolkit")

Request = TypeVar("Request")
Reply = TypeVar("Reply")
MAX_OUTSTANDING: Final = 1024
"""Calls of one handle at once: what a slow dependency may hold of its caller."""
OPEN_AGAIN: Final = 1.0
"""Seconds until replicas to which no channel could be opened are tried again: its files may be right by then."""
PATIENCE: Final = 1.0
"""Seconds that calls wait when the last replica that was ready is not any more: one that takes its place is connected by then."""
ANSWERS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.ALREADY_EXISTS,
        Code.PERMISSION_DENIED,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.UNAUTHENTICATED,
    }
)
"""What a request has itself to blame for: another replica would say the same."""
Watch = Callable[[Transport], AsyncIterator[bool]]
"""Whether a replica is ready, again whenever that changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HandleOptions:
    """How a handle behaves towards its deployment."""

    retry: RetryOptions = field(default_factory=RetryOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    balance: BalanceOptions = field(default_factory=BalanceOptions)
    bulkhead: AdmissionOptions = field(default_factory=lambda: AdmissionOptions(max_concurrency=MAX_OUTSTANDING))
    hedge: HedgeOptions | None = None
    """None: a slow call is never sent twice. Where it is, only idempotent methods with one request and one reply are."""


class _Course:
    """What one call has tried so far, in all of its lanes."""

    __slots__ = ("attempts", "tried", "winner")

    def __init__(self) -> None:
        self.attempts = 0
        self.tried: list[Replica] = []
        """Those under way included."""
        self.winner = 0
        """The lane that was answered: those before it were overtaken."""


class PoolTransport:
    """Carries each call to one of the replicas. Make it inside the event loop that uses it."""

    def __init__(
        self,
        addresses: Iterable[str] | Names,
        connect: Callable[[str], Transport],
        *,
        name: str,
        watch: Watch | None = None,
        options: HandleOptions | None = None,
    ) -> None:
        """Where names say where the replicas are, calls wait for the first answer to what they stand for."""
        self._options = HandleOptions() if options is None else options
        self._connect = connect
        self._watch = watch
        self._name = name
        self._balancer = Balancer(self._options.balance)
        self._budget = RetryBudget(self._options.budget)
        self._retry = RetryPolicy(self._budget, self._options.retry)
        self._hedges: dict[str, HedgePolicy] = {}
        self._attempted: dict[str, Calls] = {}
        self._door = Door(self._options.bulkhead, f"the handle on {name}")
        self._transports: dict[str, Transport] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._failed: dict[str, str] = {}
        """Address → why no channel to it can be opened."""
        self._opening: asyncio.TimerHandle | None = None
        """Tries them again."""
        self._ready = asyncio.Event()
        self._unheard: set[str] = set()
        """Replicas of which nothing is known yet."""
        self._heard = asyncio.Event()
        """A replica is ready, or none is and all have said so: then calls need not wait."""
        self._missing: asyncio.TimerHandle | None = None
        """Ends the wait for one in the place of the last that was ready."""
        self._names: Names | None = None
        self._following: asyncio.Task[None] | None = None
        if isinstance(addresses, Names):
            self._names = addresses
            self._following = asyncio.create_task(self._follow_names(addresses))
        else:
            for error in self._set(tuple(addresses)).values():
                raise error

    @property
    def transports(self) -> Mapping[str, Transport]:
        """Address → the connection to that replica."""
        return self._transports

    @property
    def has_names(self) -> bool:
        """Whether its replicas are where names say."""
        return self._names is not None

    @property
    def where(self) -> str:
        """The addresses of its replicas; without any, the names that should stand for them."""
        return ", ".join(self._transports) or (str(self._names) if self._names else "no address")

    @property
    def budget(self) -> RetryBudget:
        """What it has spent on attempts beyond the first."""
        return self._budget

    @property
    def name(self) -> str:
        """The deployment that it calls."""
        return self._name

    @property
    def attempted(self) -> Mapping[str, Calls]:
        """Path of a method → what became of the attempts at its calls."""
        return self._attempted

    @property
    def hedges(self) -> Iterable[HedgePolicy]:
        """What was sent twice, by method."""
        return tuple(self._hedges.values())

    @property
    def ejections(self) -> int:
        """How often a replica was left out because it failed."""
        return self._balancer.ejections

    @property
    def door(self) -> Door:
        """Where calls that are too many are refused."""
        return self._door

    @property
    def replicas(self) -> Sequence[Replica]:
        """As this caller sees them."""
        return self._balancer.replicas

    def set_addresses(self, addresses: Iterable[str]) -> None:
        """The replicas as they are now. One that is gone gets no new call, and is let go when its last has ended. One to which no
        channel can be opened, for a file is wrong while it is renewed, is logged and tried again.
        """
        if self._is_closed:
            return
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None
        wanted = tuple(addresses)
        failed = self._set(wanted)
        for address, error in failed.items():
            if self._failed.get(address) != str(error):
                trace = None if isinstance(error, StartError) else error
                log.error("%s: %s cannot be called yet: %s", self._name, address, error, exc_info=trace)
        self._failed = {address: str(error) for address, error in failed.items()}
        if failed:
            self._opening = asyncio.get_running_loop().call_later(OPEN_AGAIN, self.set_addresses, wanted)

    def _set(self, addresses: Sequence[str]) -> Mapping[str, Exception]:
        """The same. Returns why some channels could not be opened."""
        wanted = tuple(dict.fromkeys(addresses))
        failed: dict[str, Exception] = {}
        gone = self._balancer.set_replicas(wanted)
        self._unheard.intersection_update(wanted)
        for replica in gone:
            self._let_go(replica.address)
        for address in wanted:
            if address not in self._transports:
                try:
                    self._transports[address] = self._connect(address)
                except Exception as error:  # whatever it is, the other replicas are called
                    failed[address] = error
                else:
                    self._start_watching(address)
        if not (self._unheard or self._missing):
            self._heard.set()
        elif not self._has_any():
            self._heard.clear()  # calls wait for those that are new, as in the first moment
        return failed

    async def wait_ready(self) -> None:
        """Return once a replica is ready."""
        await self._ready.wait()

    async def unary(self, method: Method[Request, Reply], request: Request, call: Call) -> Reply:
        return await self._answer(method, call, lambda transport: transport.unary(method, request, call))

    async def client_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> Reply:
        return await self._answer(method, call, lambda transport: transport.client_stream(method, requests, call))

    def server_stream(self, method: Method[Request, Reply], request: Request, call: Call) -> AsyncIterator[Reply]:
        return self._stream(method, call, lambda transport: transport.server_stream(method, request, call))

    def bidi_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> AsyncIterator[Reply]:
        return self._stream(method, call, lambda transport: transport.bidi_stream(method, requests, call))

    async def close(self) -> None:
        if self._following is not None:
            await wait_closed(self._following)
        self.set_addresses(())
        self._give_up()
        self._is_closed = True
        for address in tuple(self._transports):
            self._let_go(address)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _answer(
        self, method: Method[Request, Reply], call: Call, send: Callable[[Transport], Awaitable[Reply]]
    ) -> Reply:
        """One reply, from as many attempts as it takes and the budget allows."""
        await self._door.enter(call.deadline, method.path)
        start = time.monotonic()
        done = None
        try:
            hedge = self._hedge_for(method)
            if hedge is None:
                reply = await self._attempts(method, call, send, _Course())
            else:
                reply = await self._race(hedge, method, call, send)
            done = time.monotonic() - start
            return reply
        finally:
            self._door.leave(done, kind=method.path)

    async def _attempts(
        self,
        method: Method[Request, Reply],
        call: Call,
        send: Callable[[Transport], Awaitable[Reply]],
        course: _Course,
        lane: int = 0,
    ) -> Reply:
        attempted = self._attempted_of(method)
        while True:
            if not self._heard.is_set():
                await self._wait_heard(call)
            replica = None
            start = time.monotonic()
            try:
                with attempted.counted():
                    replica = self._pick(method, course)
                    reply = await send(self._transports[replica.address])
            except ServiceError as error:
                self._end(replica, not is_fault(error), is_stream=method.client_streaming)
                delay = self._delay(error, method, call, course, unsent=replica is None)
                if delay is None:
                    raise
            except BaseException:
                self._end(replica, False if lane < course.winner else None, is_stream=method.client_streaming)
                raise
            else:
                self._end(replica, True, time.monotonic() - start, is_stream=method.client_streaming)
                self._budget.succeeded()
                return reply
            await asyncio.sleep(delay)

    async def _stream(
        self, method: Method[Request, Reply], call: Call, send: Callable[[Transport], AsyncIterator[Reply]]
    ) -> AsyncGenerator[Reply, None]:
        """Replies of one attempt; another is made only while none has been handed out."""
        await self._door.enter(call.deadline, method.path)
        course = _Course()
        attempted = self._attempted_of(method)
        replied = False
        try:
            while True:
                if not self._heard.is_set():
                    await self._wait_heard(call)
                replica = None
                ended: bool | None = None
                is_stream = method.client_streaming
                try:
                    with attempted.counted():
                        replica = self._pick(method, course)
                        async with _closing(send(self._transports[replica.address])) as replies:
                            async for reply in replies:
                                if not is_stream:
                                    is_stream = True
                                    self._balancer.began(replica)
                                replied = True
                                self._balancer.heard(replica)
                                yield reply
                    ended = True
                    self._budget.succeeded()
                    return
                except ServiceError as error:
                    ended = not is_fault(error)
                    delay = self._delay(error, method, call, course, unsent=replica is None, replied=replied)
                    if delay is None:
                        raise
                finally:
                    self._end(replica, ended, is_stream=is_stream)
                await asyncio.sleep(delay)
        finally:
            self._door.leave(None)

    async def _race(
        self,
        hedge: HedgePolicy,
        method: Method[Request, Reply],
        call: Call,
        send: Callable[[Transport], Awaitable[Reply]],
    ) -> Reply:
        """Attempts side by side, each begun when those before it are slow. The first reply wins, the rest are cancelled;
        a failure counts when no attempt is left that may do better.
        """
        start = time.monotonic()
        course = _Course()
        lanes = [asyncio.ensure_future(self._attempts(method, call, send, course))]
        pending = set(lanes)
        failure: ServiceError | None = None
        may_hedge = True
        try:
            while pending:
                remaining = None if call.deadline is None else call.deadline.remaining()
                delay = hedge.next_delay(attempt=len(lanes), remaining=remaining) if may_hedge else None
                done, pending = await asyncio.wait(pending, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                for lane in done:
                    try:
                        reply = lane.result()
                    except ServiceError as error:
                        if error.code in ANSWERS:
                            raise
                        failure = failure or error
                    else:
                        course.winner = lanes.index(lane)
                        hedge.answered(time.monotonic() - start, by_hedge=course.winner > 0)
                        return reply
                if not done:
                    may_hedge = self._has_other(course) and hedge.start()
                    if may_hedge:
                        lanes.append(asyncio.ensure_future(self._attempts(method, call, send, course, len(lanes))))
                        pending.add(lanes[-1])
            assert failure is not None  # every lane has ended, none with a reply
            raise failure
        finally:
            await wait_closed(*lanes)

    async def _wait_heard(self, call: Call) -> None:
        """Nothing is known of the replicas in the first moment: let them say. Nor in that after the last of them has left."""
        try:
            async with asyncio.timeout(None if call.deadline is None else call.deadline.remaining()):
                await self._heard.wait()
        except TimeoutError:
            raise ServiceError(Code.DEADLINE_EXCEEDED, f"the deadline passed before {self._name} answered") from None

    def _hedge_for(self, method: Method[Any, Any]) -> HedgePolicy | None:
        if self._options.hedge is None or not method.idempotent or method.client_streaming:
            return None
        if method.path not in self._hedges:
            self._hedges[method.path] = HedgePolicy(self._budget, self._options.hedge)
        return self._hedges[method.path]

    def _attempted_of(self, method: Method[Any, Any]) -> Calls:
        found = self._attempted.get(method.path)
        if found is None:
            found = self._attempted[method.path] = Calls()
        return found

    def _has_other(self, course: _Course) -> bool:
        """Whether there is a replica that the call has not tried."""
        return any(replica.is_open and replica not in course.tried for replica in self._balancer.replicas)

    def _pick(self, method: Method[Any, Any], course: _Course) -> Replica:
        course.attempts += 1
        replica = self._balancer.pick(course.tried) or (self._balancer.pick() if course.tried else None)
        if replica is None:
            raise ServiceError(
                Code.UNAVAILABLE, f"{self._name}: nobody answers, or none is ready, at {self.where}", unseen=True
            )
        course.tried.append(replica)
        if method.client_streaming:
            self._balancer.began(replica)
        return replica

    def _end(self, replica: Replica | None, ok: bool | None, latency: float = 0.0, *, is_stream: bool) -> None:
        if replica is not None and self._balancer.ended(replica, ok, latency, is_stream=is_stream):
            self._let_go(replica.address)

    def _delay(
        self,
        error: ServiceError,
        method: Method[Any, Any],
        call: Call,
        course: _Course,
        *,
        unsent: bool,
        replied: bool = False,
    ) -> float | None:
        """Seconds until the next attempt; None: there is none. A request stream is sent once, for it is read once."""
        if error.code in ANSWERS:
            self._budget.succeeded()
            return None
        failure = Failure(
            code=error.code,
            idempotent=method.idempotent and not method.client_streaming,
            relayed=bool(error.path),
            unseen=unsent or (error.unseen and not method.client_streaming),
            replied=replied,
            pushback=error.retry_after,
        )
        remaining = None if call.deadline is None else call.deadline.remaining()
        return self._retry.next_delay(failure, attempt=course.attempts, remaining=remaining)

    async def _follow_names(self, names: Names) -> None:
        async for addresses in names.watch():
            self.set_addresses(addresses)

    def _start_watching(self, address: str) -> None:
        if self._watch is None:
            self._set_ready(address, True)
        else:
            self._unheard.add(address)
            watched = self._watch(self._transports[address])  # now: it may be let go before the task has begun
            self._watching[address] = asyncio.create_task(self._follow(address, watched))

    async def _follow(self, address: str, watched: AsyncIterator[bool]) -> None:
        try:
            async for is_ready in watched:
                self._set_ready(address, is_ready)
        except Exception as error:
            log.error("%s: %s cannot be watched, and gets no calls", self._name, address, exc_info=error)
            self._set_ready(address, False)

    def _set_ready(self, address: str, is_ready: bool) -> None:
        had_any = self._has_any()
        self._balancer.set_ready(address, is_ready)
        self._unheard.discard(address)
        if is_ready:
            self._ready.set()
        elif self._names is not None:
            self._names.ask_again()
        if had_any and not self._has_any():
            self._heard.clear()
            self._missing = asyncio.get_running_loop().call_later(PATIENCE, self._give_up)
        elif is_ready:
            self._give_up()
            self._heard.set()
        elif not (self._unheard or self._missing):
            self._heard.set()

    def _has_any(self) -> bool:
        return any(replica.is_present for replica in self._balancer.replicas)

    def _give_up(self) -> None:
        """Wait for nobody but those that have yet to say how they are."""
        if self._missing is not None:
            self._missing.cancel()
            self._missing = None
        if not self._unheard:
            self._heard.set()

    def _let_go(self, address: str) -> None:
        transport = self._transports.pop(address, None)
        if transport is not None:  # None: closed already, with the pool
            task = asyncio.create_task(self._close_one(transport, self._watching.pop(address, None)))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_one(self, transport: Transport, watching: asyncio.Task[None] | None) -> None:
        if watching is not None:
            await wait_closed(watching)
        with suppress(ServiceError):
            await transport.close()


def _closing(replies: AsyncIterator[Reply]) -> aclosing[AsyncGenerator[Reply, None]]:
    return aclosing(cast("AsyncGenerator[Reply, None]", replies))
