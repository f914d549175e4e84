"""What is said beside a stream of requests, to servers that know it and to one that does not."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient, Note
from tests.conformance.conftest import grpc as serve
from toolkit.context import Context
from toolkit.dispatch import Dispatcher
from toolkit.limits import MessageLimits
from toolkit.server import Server
from toolkit.transport.beside import FAIL, FOLLOW, SERVICE, STREAM
from toolkit.transport.grpc import GrpcTransport

GOES = """
import asyncio, os, signal, sys

from services.echo.v1.echo_toolkit import EchoClient, Note
from toolkit.connect import connect


async def notes():
    while True:
        yield Note(text="x" * 100)


async def chat(echo):
    async for note in echo.chat(notes()):
        if note.text and asyncio.get_running_loop().time() > until:
            os.kill(os.getpid(), signal.SIGKILL)


async def main():
    global until
    until = asyncio.get_running_loop().time() + 0.5
    async with connect(EchoClient, sys.argv[1], ahead=256) as echo:
        await asyncio.gather(*(chat(echo) for _ in range(32)))


asyncio.run(main())
"""
NAMED = ((STREAM, "0" * 32 + "/64"),)


@asynccontextmanager
async def stock(chat: Callable[[Any, Any], Any]) -> AsyncIterator[EchoClient]:
    """A handle to gRPC's own server, which has one method."""
    server = grpc.aio.server()
    handler: Any = grpc.stream_stream_rpc_method_handler(chat)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("services.echo.v1.Echo", {"Chat": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = GrpcTransport(f"127.0.0.1:{port}", limits=MessageLimits(1 << 20))
    try:
        yield EchoClient(transport, "echo")
    finally:
        await transport.close()
        await server.stop(None)


async def fails(after: asyncio.Event) -> AsyncIterator[Note]:
    yield Note(number=1)
    await after.wait()
    raise ValueError("out of paper")


async def test_a_server_that_does_not_know_of_failures_has_its_call_cancelled() -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    has_read = asyncio.Event()

    async def chat(requests: AsyncIterator[bytes], call: Any) -> None:
        try:
            await anext(requests)
            has_read.set()
            await anext(requests, None)
            await asyncio.Event().wait()  # a stream that is cut off looks like one that has ended
        except asyncio.CancelledError:
            ended.set_result("cancelled")
            raise

    async with stock(chat) as echo:
        with pytest.raises(ValueError, match="out of paper"):
            _ = [note async for note in echo.chat(fails(has_read), timeout=20)]
        assert await asyncio.wait_for(ended, 10) == "cancelled"


async def test_nobody_speaks_of_a_stream_that_there_is_not() -> None:
    async with serve(Echo()) as transport:
        assert isinstance(transport, GrpcTransport)
        for metadata in ((), NAMED):
            follow: Any = transport.channel.unary_stream(f"/{SERVICE}/{FOLLOW}")
            assert [item async for item in follow(b"", metadata=metadata, timeout=10)] == []
            fail: Any = transport.channel.unary_unary(f"/{SERVICE}/{FAIL}")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fail(b"", metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stream_is_followed_once() -> None:
    """Whoever could follow it twice would make the server keep as many calls as they like."""
    async with serve(Echo()) as transport:
        assert isinstance(transport, GrpcTransport)
        chat: Any = transport.channel.stream_stream("/services.echo.v1.Echo/Chat")
        call = chat(metadata=NAMED, timeout=20)
        await call.write(b"")
        await call.read()
        follow: Any = transport.channel.unary_stream(f"/{SERVICE}/{FOLLOW}")
        first = follow(b"", metadata=NAMED, timeout=20)
        assert await first.read() != b""  # 64 bytes, of 64
        assert [item async for item in follow(b"", metadata=NAMED, timeout=20)] == []
        await call.done_writing()
        assert await first.read() is grpc.aio.EOF


async def test_both_sides_count_alike_however_far_the_writer_may_be_ahead() -> None:
    """Else it would wait for room that there is."""

    class Counts(Echo):
        async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
            return Note(number=len([note.number async for note in requests]))

    async def large() -> AsyncIterator[Note]:
        for _ in range(6):
            yield Note(text="x" * (30 << 20))

    limits = MessageLimits(32 << 20)
    server = Server(Echo.__contract__, limits=limits)
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(Counts(), timeout=30))
    transport = GrpcTransport(address, limits=limits, ahead=64 << 20)
    try:
        assert (await EchoClient(transport).join(large(), timeout=30)).number == 6
    finally:
        await transport.close()
        await server.drain(1)


async def test_a_caller_that_is_killed_amid_its_streams_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(Echo.__contract__, limits=MessageLimits(1 << 20))
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(Echo(), timeout=30))
    for _ in range(3):
        caller = await asyncio.create_subprocess_exec(sys.executable, "-c", GOES, address)
        assert await caller.wait() == -signal.SIGKILL
    await server.drain(5)
    assert caplog.records == []
