"""A typed client from outside of a graph."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient, Note
from toolkit.connect import connect
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError
from toolkit.limits import MessageLimits
from toolkit.server import Server


@pytest.fixture
async def addresses(tmp_path: Path) -> AsyncIterator[tuple[str, ...]]:
    """A port and a socket of one server."""
    server = Server(Echo.__contract__, limits=MessageLimits())
    found = await server.listen(("127.0.0.1:0", f"unix:{tmp_path}/echo.sock"))
    await server.open(Dispatcher(Echo(), timeout=30))
    yield found
    await server.drain(0)


async def test_a_port_and_a_socket_can_be_called(addresses: tuple[str, ...]) -> None:
    for address in addresses:
        async with connect(EchoClient, address) as echo:
            assert await echo.say(Note(text="t"), timeout=10) == Note(text="t")


async def test_replicas_of_one_another_can_be_called(addresses: tuple[str, ...]) -> None:
    async with connect(EchoClient, *addresses) as echo:
        assert [await echo.say(Note(number=n), timeout=10) for n in range(4)] == [Note(number=n) for n in range(4)]


async def test_nobody_there_is_an_error_of_the_call() -> None:
    async with connect(EchoClient, "127.0.0.1:1") as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(), timeout=10)
    assert caught.value.code == Code.UNAVAILABLE
    assert "127.0.0.1:1" in caught.value.message


async def test_a_message_over_the_limit_is_refused_before_it_is_sent(addresses: tuple[str, ...]) -> None:
    async with connect(EchoClient, addresses[0], max_message_bytes=1000) as echo:
        assert await echo.say(Note(blob=bytes(900)), timeout=10)
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(blob=bytes(1000)), timeout=10)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED


async def test_what_was_connected_is_closed_with_its_block(addresses: tuple[str, ...]) -> None:
    async with connect(EchoClient, addresses[0]) as echo:
        await echo.say(Note(), timeout=10)
    with pytest.raises(ServiceError, match="UNAVAILABLE: "):
        await echo.say(Note(), timeout=10)


async def test_a_server_that_takes_long_to_greet_is_waited_for(addresses: tuple[str, ...]) -> None:
    """As over a slow network, or on a busy machine."""
    host, _, port = addresses[0].rpartition(":")

    async def later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, back), pump(there, writer))

    async with asyncio.TaskGroup() as greetings:  # a slow one is not left behind
        slow = await asyncio.start_server(lambda *ends: greetings.create_task(later(*ends)), "127.0.0.1", 0)
        async with slow, connect(EchoClient, f"127.0.0.1:{slow.sockets[0].getsockname()[1]}") as echo:
            assert await echo.say(Note(text="t"), timeout=30) == Note(text="t")


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    with suppress(ConnectionError):
        writer.close()
        await writer.wait_closed()
