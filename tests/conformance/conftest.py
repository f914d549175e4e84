"""Every test in this folder runs once per transport: what it states holds wherever a handle leads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from services.echo.v1.echo_toolkit import EchoClient
from tests.certificates import guarded, make
from toolkit.dispatch import Dispatcher
from toolkit.limits import MessageLimits
from toolkit.policy.hedge import HedgeOptions
from toolkit.security import PLAIN
from toolkit.server import EVERYBODY, Server
from toolkit.service import Service
from toolkit.spec import Incoming, Outgoing
from toolkit.transport.grpc import GrpcTransport
from toolkit.transport.local import LocalTransport
from toolkit.transport.pool import HandleOptions, PoolTransport

MIB = 1 << 20
Serve = Callable[..., AbstractAsyncContextManager[EchoClient]]


@asynccontextmanager
async def over_local(
    service: Service, *, strict: bool = False, timeout: float = 30, **options: Any
) -> AsyncIterator[EchoClient]:
    transport = LocalTransport(Dispatcher(service, timeout=timeout, **options), strict=strict)
    try:
        yield EchoClient(transport, "echo")
    finally:
        await transport.close()


@asynccontextmanager
async def over_strict(service: Service, **options: Any) -> AsyncIterator[EchoClient]:
    async with over_local(service, strict=True, **options) as client:
        yield client


@asynccontextmanager
async def over_grpc(
    service: Service,
    *,
    incoming: Incoming = EVERYBODY,
    outgoing: Outgoing = PLAIN,
    timeout: float = 30,
    **options: Any,
) -> AsyncIterator[EchoClient]:
    server = Server(service.__contract__, limits=MessageLimits(MIB), incoming=incoming)
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(service, timeout=timeout, **options))
    transport = GrpcTransport((address,), limits=MessageLimits(MIB), outgoing=outgoing)
    try:
        yield EchoClient(transport, "echo")
    finally:
        await transport.close()
        await server.drain(1)


@asynccontextmanager
async def over_guarded(service: Service, **options: Any) -> AsyncIterator[EchoClient]:
    """Mutual TLS, callers by name, and a token."""
    with TemporaryDirectory() as folder:
        make(Path(folder))
        incoming, outgoing = guarded(Path(folder))
        async with over_grpc(service, incoming=incoming, outgoing=outgoing, **options) as client:
            yield client


@asynccontextmanager
async def over_pool(service: Service, *, timeout: float = 30, **options: Any) -> AsyncIterator[EchoClient]:
    """Three replicas that are one service."""
    dispatcher = Dispatcher(service, timeout=timeout, **options)
    transport = PoolTransport("abc", lambda address: LocalTransport(dispatcher), name="echo", options=HEDGED)
    try:
        yield EchoClient(transport, "echo")
    finally:
        await transport.close()


HEDGED = HandleOptions(hedge=HedgeOptions(delay=5.0))
TRANSPORTS = {
    "local": over_local,
    "strict": over_strict,
    "grpc": over_grpc,
    "guarded": over_guarded,
    "pool": over_pool,
}


@pytest.fixture(params=TRANSPORTS)
def serve(request: pytest.FixtureRequest) -> Serve:
    """`async with serve(service) as client`: the service over the transport under test."""
    chosen: Serve = TRANSPORTS[request.param]
    return chosen
