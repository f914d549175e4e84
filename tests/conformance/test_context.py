"""What crosses a hop by itself, and what outlives a call."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from tests.conformance.conftest import Serve
from toolkit.context import Context
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Leaf(EchoBase):
    def __init__(self) -> None:
        self.seen: list[Context] = []

    async def say(self, request: Note, context: Context) -> Note:
        self.seen.append(context)
        return request


class Front(EchoBase):
    def __init__(self, leaf: EchoClient) -> None:
        self.leaf = leaf
        self.seen: list[Context] = []

    async def say(self, request: Note, context: Context) -> Note:
        self.seen.append(context)
        return await self.leaf.say(request)


async def test_request_id_and_trace_context_cross_every_hop_and_nothing_else_does(serve: Serve) -> None:
    leaf = Leaf()
    async with serve(leaf) as to_leaf, serve(Front(to_leaf)) as front:
        await front.say(Note(), metadata={"x-request-id": "r1", "traceparent": TRACE, "x-secret": "s"})
        first = {key: leaf.seen[0].first(key) for key in ("x-request-id", "traceparent", "x-secret")}
    assert first == {"x-request-id": "r1", "traceparent": TRACE, "x-secret": None}


async def test_listed_keys_cross_too(serve: Serve) -> None:
    leaf = Leaf()
    async with serve(leaf) as to_leaf, serve(Front(to_leaf), forward=["x-tenant"]) as front:
        await front.say(Note(), metadata={"x-tenant": "acme"})
        assert leaf.seen[0].first("x-tenant") == "acme"


async def test_a_call_without_a_request_id_gets_one_for_all_hops(serve: Serve) -> None:
    leaf = Leaf()
    async with AsyncExitStack() as stack:
        service = Front(await stack.enter_async_context(serve(leaf)))
        front = await stack.enter_async_context(serve(service))
        await front.say(Note())
        await front.say(Note())
    ids = [context.request_id for context in leaf.seen]
    assert ids == [context.request_id for context in service.seen]
    assert len(set(ids)) == 2


async def test_detached_work_outlives_its_call_and_its_deadline(serve: Serve) -> None:
    leaf, recorded = Leaf(), asyncio.Event()

    class Records(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            if request.text:
                context.detached(self.record(context))
            return request

        async def record(self, context: Context) -> None:
            while (left := context.remaining() or 0.0) > 0:  # noqa: ASYNC110 - a deadline has no event
                await asyncio.sleep(left)
            await to_leaf.say(Note(text=context.request_id))
            recorded.set()

    async with serve(leaf) as to_leaf, serve(Records(), timeout=20) as front:
        await front.say(Note())  # a handshake is no part of the call that is short
        await front.say(Note(text="record"), timeout=0.5, metadata={"x-request-id": "r2"})
        await asyncio.wait_for(recorded.wait(), 10)
    assert leaf.seen[0].request_id == "r2"


async def test_what_a_call_brought_can_be_read_when_it_has_long_ended(serve: Serve) -> None:
    """gRPC by itself shows whatever is in that memory by then."""
    leaf = Leaf()
    async with serve(leaf) as echo:
        for n in range(50):
            await echo.say(Note(), metadata={"x-tenant": f"tenant number {n} has a long name", "x-raw-bin": bytes(100)})
        first = [context.first("x-tenant") for context in leaf.seen]
        assert all(context.peer == leaf.seen[0].peer for context in leaf.seen)
        assert all(context.first("x-raw-bin") == bytes(100) for context in leaf.seen)
    assert first == [f"tenant number {n} has a long name" for n in range(50)]


async def test_detached_work_goes_on_when_the_caller_gives_up(serve: Serve) -> None:
    began, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def record() -> None:
        await go.wait()
        done.set()

    class Records(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            context.detached(record())
            began.set()
            await asyncio.Event().wait()
            return request

    async with serve(Records()) as echo:
        call = asyncio.create_task(echo.say(Note()))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go.set()
        await asyncio.wait_for(done.wait(), 10)


class Detaches(EchoBase):
    """Its work waits for a gate."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def say(self, request: Note, context: Context) -> Note:
        self.tasks.append(context.detached(self.gate.wait()))
        return request


async def test_detached_work_is_in_flight_until_it_ends(serve: Serve) -> None:
    service, made = Detaches(), list[Dispatcher]()
    async with serve(service, made=made) as echo:
        await echo.say(Note())
        assert not await made[0].wait_idle(0)
        service.gate.set()
        assert await made[0].wait_idle(10)


async def test_detached_work_has_the_deployment_s_timeout(serve: Serve) -> None:
    service, made = Detaches(), list[Dispatcher]()
    async with serve(service, timeout=0.2, made=made) as echo:
        await echo.say(Note(), timeout=30)
        await asyncio.wait_for(asyncio.wait(service.tasks), 10)
        assert await made[0].wait_idle(10)


async def test_detached_work_that_fails_is_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def fail() -> None:
        raise LookupError("no such account")

    class Fails(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            tasks.append(context.detached(fail()))
            return request

    async with serve(Fails()) as echo:
        await echo.say(Note())
        await asyncio.wait(tasks)
    assert "no such account" in caplog.text


async def test_work_whose_deadline_has_passed_does_not_begin(serve: Serve) -> None:
    leaf = Leaf()
    async with serve(leaf) as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(), timeout=-1)
    assert caught.value.code == Code.DEADLINE_EXCEEDED
    assert leaf.seen == []
