"""A server under somebody's watch, or with too much to do, and its drain."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.connect import pool
from toolkit.context import Context
from toolkit.contract import served
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError
from toolkit.limits import MessageLimits
from toolkit.policy.admission import AdmissionOptions
from toolkit.server import Server
from toolkit.tasks import wait_closed
from toolkit.transport.grpc import GrpcTransport

LONG = 60.0


async def test_a_drain_does_not_wait_for_those_who_watch() -> None:
    server = Server(EchoBase.__contract__, limits=MessageLimits())
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(Echo(), timeout=LONG))
    handle = pool([address], EchoBase.__contract__, name="echo", limits=MessageLimits())
    await handle.wait_ready()
    assert (await EchoClient(handle).say(Note(text="a"))).text == "a"
    start = time.monotonic()
    assert await server.drain(LONG) == 0
    assert time.monotonic() - start < LONG / 2
    (replica,) = handle.replicas
    while replica.is_ready:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    await handle.close()


async def test_health_and_reflection_answer_however_busy_it_is() -> None:
    began = asyncio.Event()

    class Hangs(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            began.set()
            await asyncio.Event().wait()
            return request

    server = Server(EchoBase.__contract__, limits=MessageLimits(), reflect=True)
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(Hangs(), timeout=LONG, admission=AdmissionOptions(max_concurrency=1, max_queue=0)))
    transport = GrpcTransport(address, limits=MessageLimits())
    echo = EchoClient(transport)
    running = asyncio.create_task(echo.say(Note()))
    await began.wait()
    with pytest.raises(ServiceError, match="RESOURCE_EXHAUSTED"):
        await echo.say(Note())
    health: Any = health_pb2_grpc.HealthStub(transport.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=EchoBase.__contract__.name), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert await served(transport.channel) == {EchoBase.__contract__.name}
    await wait_closed(running)
    await transport.close()
    await server.drain(LONG)


async def test_a_request_that_cannot_be_read_counts_as_a_call() -> None:
    server = Server(EchoBase.__contract__, limits=MessageLimits())
    (address,) = await server.listen(("127.0.0.1:0",))
    dispatcher = Dispatcher(Echo(), timeout=LONG)
    await server.open(dispatcher)
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await channel.unary_unary("/services.echo.v1.Echo/Say")(b"\xff", timeout=LONG)
        with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
            await anext(aiter(channel.unary_stream("/services.echo.v1.Echo/Repeat")(b"\xff", timeout=LONG)))
    await server.drain(LONG)
    counted = {path: (each.started, list(each.ended)) for path, each in dispatcher.calls.items() if each.started}
    assert counted == {
        "/services.echo.v1.Echo/Say": (1, [Code.INVALID_ARGUMENT]),
        "/services.echo.v1.Echo/Repeat": (1, [Code.INVALID_ARGUMENT]),
    }
