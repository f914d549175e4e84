"""Deployments that share a process: a handle of one on another reaches its dispatcher, and nothing is encoded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from toolkit.client import Client
from toolkit.context import Context
from toolkit.control import Addresses, Control
from toolkit.dispatch import Dispatcher, Send
from toolkit.errors import Code, ServiceError, StartError
from toolkit.method import Method
from toolkit.service import Service
from toolkit.transport.base import Transport
from toolkit.transport.local import LocalTransport
from toolkit.transport.pool import HandleOptions, PoolTransport

SCHEME = "local:"


class Here:
    """Who is in this process, and who of them answers already."""

    def __init__(
        self, services: Mapping[str, type[Service]] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._services = dict(services or {})
        self._answering = {name: _Answering(name) for name in self._services}
        self._drains_since: float | None = None

    def __contains__(self, deployment: str) -> bool:
        return deployment in self._services

    def open(self, deployment: str, dispatcher: Dispatcher) -> None:
        """It answers calls from now on."""
        if deployment in self._answering:
            self._answering[deployment].open(dispatcher)

    async def wait_open(self) -> None:
        """Return once everybody answers."""
        for each in self._answering.values():
            await each.is_open.wait()

    @property
    def load(self) -> tuple[int, int, float]:
        """Of all who answer: calls that run, calls that wait, and the longest that a new one would wait."""
        loads = [each.dispatcher.load for each in self._answering.values() if each.dispatcher is not None]
        running, queued, waits = zip(*loads, strict=True) if loads else ((), (), ())
        return sum(running), sum(queued), max(waits, default=0.0)

    def begin_drain(self) -> None:
        """The process was told to stop."""
        self._drains_since = self._clock()

    def time_left(self, drain_timeout: float) -> float:
        """Of a drain's limit, which is the process's: those who drain after others have what these left."""
        since = self._drains_since
        return drain_timeout if since is None else max(0.0, drain_timeout - (self._clock() - since))

    def pool(self, deployment: str, handle: str, client: type[Client], options: HandleOptions) -> PoolTransport:
        """What carries a handle's calls, with all that holds for calls to another process. Raises StartError where the
        deployment serves something else.
        """
        contract = self._services[deployment].__contract__
        if contract != client.__contract__:
            raise StartError(
                f"handle {handle} expects {client.__contract__.name}, and {deployment} in the same process serves "
                f"{contract.name}; let `bind` name the right deployment, or change depends()"
            )
        answering = self._answering[deployment]

        def connect(address: str) -> Transport:
            return LocalTransport(answering)

        return PoolTransport(
            (f"{SCHEME}{deployment}",),
            connect,
            name=deployment,
            watch=lambda transport: answering.watch(),
            options=options,
        )


class _Answering:
    """A dispatcher that is not there yet."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.dispatcher: Dispatcher | None = None
        self.is_open = asyncio.Event()

    def open(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.is_open.set()

    async def watch(self) -> AsyncIterator[bool]:
        """As `grpc.health.v1` would tell it."""
        yield self.is_open.is_set()
        await self.is_open.wait()
        yield True
        await asyncio.Event().wait()

    async def reply(self, method: Method[Any, Any], request: Any, context: Context) -> Any:
        return await self._now().reply(method, request, context)

    async def stream(self, method: Method[Any, Any], request: Any, context: Context, send: Send) -> None:
        await self._now().stream(method, request, context, send)

    def _now(self) -> Dispatcher:
        if self.dispatcher is None:
            raise ServiceError(Code.UNAVAILABLE, f"{self._name} is still starting", unseen=True)
        return self.dispatcher


class Part(Control):
    """One deployment's word to the launcher, of a process that holds several: how far it is, and nothing that is said once."""

    def __init__(self, name: str, whole: Control) -> None:
        super().__init__(None)
        self._name = name
        self._whole = whole
        self.is_ready = asyncio.Event()
        self.addresses: tuple[str, ...] = ()
        """Where it listens, once it is ready."""
        self.moved: Callable[[Addresses], None] = lambda addresses: None
        """What it does when those that it calls have moved."""

    def progress(self, phase: str, done: float | None, total: float | None) -> None:
        self._whole.progress(f"{self._name}: {phase}", done, total)

    def ready(self, addresses: tuple[str, ...]) -> None:
        self.addresses = addresses
        self.is_ready.set()

    def listen(self, moved: Callable[[Addresses], None], gone: Callable[[], None]) -> None:
        """The process itself does, and calls `moved`."""
        self.moved = moved


def callers_first(calls: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Tiers: a deployment comes after all that call it."""
    left = {name: set(callees) for name, callees in calls.items()}
    tiers: list[list[str]] = []
    while left:
        called = set().union(*left.values())
        tier = [name for name in left if name not in called] or list(left)
        tiers.append(tier)
        for name in tier:
            del left[name]
    return tiers
