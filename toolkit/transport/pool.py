"""One handle over the replicas of a deployment: balancing, retries, hedging and a bulkhead, for whatever carries the calls.

The decisions are those of `policy`; here they meet the event loop.
"""

from __future__ import annotations

import asyncio
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
from itertools import count
from typing import Any, Final, TypeVar, cast

from toolkit.door import Door
from toolkit.errors import Code, ServiceError
from toolkit.method import Method
from toolkit.policy.admission import AdmissionOptions
from toolkit.policy.balance import BalanceOptions, Balancer
from toolkit.policy.hedge import HedgeOptions, HedgePolicy
from toolkit.policy.outlier import is_fault
from toolkit.policy.replica import Replica
from toolkit.policy.retry import BudgetOptions, Failure, RetryBudget, RetryOptions, RetryPolicy
from toolkit.tasks import wait_closed
from toolkit.transport.base import Call, Transport

Request = TypeVar("Request")
Reply = TypeVar("Reply")
MAX_OUTSTANDING: Final = 1024
"""Calls of one handle at once: what a slow dependency may hold of its caller."""
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


class PoolTransport:
    """Carries each call to one of the replicas. Make it inside the event loop that uses it."""

    def __init__(
        self,
        addresses: Iterable[str],
        connect: Callable[[str], Transport],
        *,
        name: str,
        watch: Watch | None = None,
        options: HandleOptions | None = None,
    ) -> None:
        self._options = HandleOptions() if options is None else options
        self._connect = connect
        self._watch = watch
        self._name = name
        self._balancer = Balancer(self._options.balance)
        self._budget = RetryBudget(self._options.budget)
        self._retry = RetryPolicy(self._budget, self._options.retry)
        self._hedges: dict[str, HedgePolicy] = {}
        self._door = Door(self._options.bulkhead, f"the handle on {name}")
        self._transports: dict[str, Transport] = {}
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()
        self._unheard: set[str] = set()
        """Replicas of which nothing is known yet."""
        self._heard = asyncio.Event()
        """A replica is ready, or none is and all have said so."""
        self.set_addresses(addresses)

    @property
    def transports(self) -> Mapping[str, Transport]:
        """Address → the connection to that replica."""
        return self._transports

    @property
    def budget(self) -> RetryBudget:
        """What it has spent on attempts beyond the first."""
        return self._budget

    @property
    def replicas(self) -> Sequence[Replica]:
        """As this caller sees them."""
        return self._balancer.replicas

    def set_addresses(self, addresses: Iterable[str]) -> None:
        """The replicas as they are now. One that is gone gets no new call, and is let go when its last has ended."""
        wanted = list(addresses)
        gone = self._balancer.set_replicas(wanted)
        for address in wanted:
            if address not in self._transports:
                self._transports[address] = self._connect(address)
                self._start_watching(address)
        for replica in gone:
            self._let_go(replica.address)

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
        for task in self._watching.values():
            await wait_closed(task)
        if self._closing:
            await asyncio.wait(self._closing)
        for transport in self._transports.values():
            await transport.close()

    async def _answer(
        self, method: Method[Request, Reply], call: Call, send: Callable[[Transport], Awaitable[Reply]]
    ) -> Reply:
        """One reply, from as many attempts as it takes and the budget allows."""
        await self._door.enter(call.deadline)
        start = time.monotonic()
        done = None
        try:
            if not self._heard.is_set():
                await self._wait_heard(call)
            hedge = self._hedge_for(method)
            reply = await (
                self._attempts(method, call, send) if hedge is None else self._race(hedge, method, call, send)
            )
            done = time.monotonic() - start
            return reply
        finally:
            self._door.leave(done)

    async def _attempts(
        self, method: Method[Request, Reply], call: Call, send: Callable[[Transport], Awaitable[Reply]]
    ) -> Reply:
        tried: list[Replica] = []
        for attempt in count(1):
            replica = None
            start = time.monotonic()
            try:
                replica = self._pick(tried)
                reply = await send(self._transports[replica.address])
            except ServiceError as error:
                self._end(replica, not is_fault(error))
                delay = self._delay(error, method, call, attempt=attempt)
                if delay is None:
                    raise
            except BaseException:
                self._end(replica, None)
                raise
            else:
                self._end(replica, True, time.monotonic() - start)
                self._budget.succeeded()
                return reply
            if replica is not None:
                tried.append(replica)
            await asyncio.sleep(delay)
        raise AssertionError  # the count has no end

    async def _stream(
        self, method: Method[Request, Reply], call: Call, send: Callable[[Transport], AsyncIterator[Reply]]
    ) -> AsyncGenerator[Reply, None]:
        """Replies of one attempt; another is made only while none has been handed out."""
        await self._door.enter(call.deadline)
        tried: list[Replica] = []
        replied = False
        try:
            if not self._heard.is_set():
                await self._wait_heard(call)
            for attempt in count(1):
                replica = None
                ended: bool | None = None
                try:
                    replica = self._pick(tried)
                    async with _closing(send(self._transports[replica.address])) as replies:
                        async for reply in replies:
                            replied = True
                            self._balancer.heard(replica)
                            yield reply
                    ended = True
                    self._budget.succeeded()
                    return
                except ServiceError as error:
                    ended = not is_fault(error)
                    delay = self._delay(error, method, call, attempt=attempt, replied=replied)
                    if delay is None:
                        raise
                finally:
                    self._end(replica, ended)
                if replica is not None:
                    tried.append(replica)
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
        """Attempts side by side, each begun when those before it are slow. The first reply wins, the rest are cancelled."""
        start = time.monotonic()
        running = [asyncio.ensure_future(self._attempts(method, call, send))]
        try:
            while True:
                remaining = None if call.deadline is None else call.deadline.remaining()
                delay = hedge.next_delay(attempt=len(running), remaining=remaining)
                done, _ = await asyncio.wait(running, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    reply = done.pop().result()
                    hedge.answered(time.monotonic() - start)
                    return reply
                if delay is not None and hedge.start():
                    running.append(asyncio.ensure_future(self._attempts(method, call, send)))
                else:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in running:
                await wait_closed(task)

    async def _wait_heard(self, call: Call) -> None:
        """Nothing is known of the replicas in the first moment: let them say."""
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

    def _pick(self, tried: list[Replica]) -> Replica:
        replica = self._balancer.pick(tried) or (self._balancer.pick() if tried else None)
        if replica is None:
            known = ", ".join(self._transports) or "no address"
            raise ServiceError(
                Code.UNAVAILABLE, f"{self._name}: nobody answers, or none is ready, at {known}", unseen=True
            )
        return replica

    def _end(self, replica: Replica | None, ok: bool | None, latency: float = 0.0) -> None:
        if replica is not None and self._balancer.ended(replica, ok, latency):
            self._let_go(replica.address)

    def _delay(
        self, error: ServiceError, method: Method[Any, Any], call: Call, *, attempt: int, replied: bool = False
    ) -> float | None:
        failure = Failure(
            code=error.code,
            idempotent=method.idempotent and not method.client_streaming,
            relayed=bool(error.path),
            unseen=error.unseen and not method.client_streaming,
            replied=replied,
            pushback=error.retry_after,
        )
        remaining = None if call.deadline is None else call.deadline.remaining()
        return self._retry.next_delay(failure, attempt=attempt, remaining=remaining)

    def _start_watching(self, address: str) -> None:
        if self._watch is None:
            self._set_ready(address, True)
        else:
            self._unheard.add(address)
            self._watching[address] = asyncio.create_task(self._follow(address, self._watch))

    async def _follow(self, address: str, watch: Watch) -> None:
        async for is_ready in watch(self._transports[address]):
            self._set_ready(address, is_ready)

    def _set_ready(self, address: str, is_ready: bool) -> None:
        self._balancer.set_ready(address, is_ready)
        self._unheard.discard(address)
        if is_ready:
            self._ready.set()
        if is_ready or not self._unheard:
            self._heard.set()

    def _let_go(self, address: str) -> None:
        task = asyncio.create_task(self._close_one(self._transports.pop(address), self._watching.pop(address, None)))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close_one(self, transport: Transport, watching: asyncio.Task[None] | None) -> None:
        if watching is not None:
            await wait_closed(watching)
        with suppress(ServiceError):
            await transport.close()


def _closing(replies: AsyncIterator[Reply]) -> aclosing[AsyncGenerator[Reply, None]]:
    return aclosing(cast("AsyncGenerator[Reply, None]", replies))
