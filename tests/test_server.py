"""A server under somebody's watch, and its drain."""

from __future__ import annotations

import asyncio
import time

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.connect import pool
from toolkit.dispatch import Dispatcher
from toolkit.limits import MessageLimits
from toolkit.server import Server

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
