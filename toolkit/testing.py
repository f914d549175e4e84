"""A service and a real handle to it in one process, for tests: no sockets, nothing to wait for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from toolkit.client import Client
from toolkit.dispatch import Dispatcher
from toolkit.service import Service
from toolkit.transport.local import LocalTransport

C = TypeVar("C", bound=Client)
TIMEOUT: Final = 30.0
"""Seconds that a call may take when a test sets no timeout."""


@asynccontextmanager
async def serve(service: Service, client: type[C], *, strict: bool = True) -> AsyncIterator[C]:
    """A client of `service`, which is entered and left with the block:

    `async with serve(Scoring(), ScoringClient) as scoring: ...`

    A service with handles gets them as attributes before: `graph.classifier = FakeScoring()`. `strict` sends every
    message through its encoding, so that what passes here passes between processes.
    """
    if client.__contract__ != service.__contract__:
        raise TypeError(
            f"{type(service).__name__} serves {service.__contract__.name}, and {client.__name__} calls {client.__contract__.name}"
        )
    async with service:
        transport = LocalTransport(Dispatcher(service, timeout=TIMEOUT), strict=strict)
        try:
            yield client(transport)
        finally:
            await transport.close()


class FakeClock:
    """A clock that stands still until `advance`: hand it in where a `Clock` is taken."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
