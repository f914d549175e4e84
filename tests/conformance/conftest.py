"""Every test in this folder runs once per transport: what it states holds wherever a handle leads."""

from __future__ import annotations

import atexit
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from services.echo.v1.echo_toolkit import EchoClient
from tests import certificates
from tests.certificates import make
from toolkit.dispatch import Dispatcher
from toolkit.limits import MessageLimits
from toolkit.policy.hedge import HedgeOptions
from toolkit.security import PLAIN
from toolkit.server import EVERYBODY, Server
from toolkit.service import Service
from toolkit.spec import Incoming, Outgoing
from toolkit.transport.base import Transport
from toolkit.transport.grpc import GrpcTransport
from toolkit.transport.local import LocalTransport
from toolkit.transport.pool import HandleOptions, PoolTransport

MIB = 1 << 20
Serve = Callable[..., AbstractAsyncContextManager[EchoClient]]
Deploy = Callable[..., AbstractAsyncContextManager[PoolTransport]]
Link = Callable[..., AbstractAsyncContextManager[Transport]]


def dispatcher(
    service: Service, *, timeout: float = 30, made: list[Dispatcher] | None = None, **options: Any
) -> Dispatcher:
    """Added to `made` too, for a test that looks at what it counts."""
    found = Dispatcher(service, timeout=timeout, **options)
    if made is not None:
        made.append(found)
    return found


@asynccontextmanager
async def local(service: Service, *, strict: bool = False, **options: Any) -> AsyncIterator[Transport]:
    transport = LocalTransport(dispatcher(service, **options), strict=strict)
    try:
        yield transport
    finally:
        await transport.close()


def strict(service: Service, **options: Any) -> AbstractAsyncContextManager[Transport]:
    return local(service, strict=True, **options)


@asynccontextmanager
async def grpc(
    service: Service, *, incoming: Incoming = EVERYBODY, outgoing: Outgoing = PLAIN, **options: Any
) -> AsyncIterator[Transport]:
    server = Server(service.__contract__, limits=MessageLimits(MIB), incoming=incoming)
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(dispatcher(service, **options))
    transport = GrpcTransport(address, limits=MessageLimits(MIB), outgoing=outgoing)
    try:
        yield transport
    finally:
        await transport.close()
        await server.drain(1)


@asynccontextmanager
async def guarded(service: Service, **options: Any) -> AsyncIterator[Transport]:
    """Mutual TLS, callers by name, and a token."""
    incoming, outgoing = certificates.guarded(made_certificates())
    async with grpc(service, incoming=incoming, outgoing=outgoing, **options) as transport:
        yield transport


@cache
def made_certificates() -> Path:
    """One folder of them for all tests."""
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    return make(Path(folder.name))


@asynccontextmanager
async def pool(service: Service, **options: Any) -> AsyncIterator[Transport]:
    """Three replicas that are one service."""
    found = dispatcher(service, **options)
    transport = PoolTransport("abc", lambda address: LocalTransport(found), name="echo", options=HEDGED)
    try:
        yield transport
    finally:
        await transport.close()


HEDGED = HandleOptions(hedge=HedgeOptions(delay=5.0))
LINKS: dict[str, Link] = {"local": local, "strict": strict, "grpc": grpc, "guarded": guarded}


@pytest.fixture(params=[*LINKS, "pool"])
def serve(request: pytest.FixtureRequest) -> Serve:
    """`async with serve(service) as client`: the service over the transport under test."""
    link = (LINKS | {"pool": pool})[request.param]

    @asynccontextmanager
    async def over(service: Service, **options: Any) -> AsyncIterator[EchoClient]:
        async with link(service, **options) as transport:
            yield EchoClient(transport, "echo")

    return over


@pytest.fixture(params=LINKS)
def deploy(request: pytest.FixtureRequest) -> Deploy:
    """`async with deploy(one, other) as transport`: a handle's way to replicas that differ, over the transport under test."""
    link = LINKS[request.param]

    @asynccontextmanager
    async def over(*services: Service, options: HandleOptions | None = None) -> AsyncIterator[PoolTransport]:
        async with AsyncExitStack() as stack:
            links = {str(n): await stack.enter_async_context(link(each)) for n, each in enumerate(services)}
            transport = PoolTransport(links, links.__getitem__, name="echo", options=options)
            stack.push_async_callback(transport.close)
            yield transport

    return over
