"""Admission and retries: what a busy or failing deployment says, wherever the handle leads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.echo.v1.echo_toolkit import EchoBase, Note
from tests.conformance.conftest import Serve
from toolkit.context import Context
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError
from toolkit.policy.admission import AdmissionOptions
from toolkit.transport.pool import PoolTransport


class Gate(EchoBase):
    """Each handler waits until it is let go."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.began = asyncio.Semaphore(0)
        self.go = asyncio.Event()
        self.order: list[int] = []

    async def say(self, request: Note, context: Context) -> Note:
        self.order.append(request.number)
        return await self.wait(request)

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        yield await self.wait(request)

    async def wait(self, request: Note) -> Note:
        self.running += 1
        self.most = max(self.most, self.running)
        self.began.release()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return request


async def failure(call: asyncio.Task[Note]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await call
    return caught.value


async def test_no_more_calls_run_than_may_and_all_are_answered_in_order(serve: Serve) -> None:
    gate = Gate()
    async with serve(gate, admission=AdmissionOptions(max_concurrency=2, max_queue=100)) as echo:
        calls = []
        for number in range(20):
            calls.append(asyncio.create_task(echo.say(Note(number=number), timeout=30)))
            if number < 2:
                await gate.began.acquire()
        gate.go.set()
        replies = await asyncio.gather(*calls)
    assert [reply.number for reply in replies] == list(range(20))
    assert gate.order[:2] == [0, 1]
    assert gate.most == 2


async def test_beyond_the_queue_a_call_is_refused_at_once_and_told_when_to_come_back(serve: Serve) -> None:
    gate = Gate()
    async with serve(gate, admission=AdmissionOptions(max_concurrency=1, max_queue=0)) as echo:
        running = asyncio.create_task(echo.say(Note(), timeout=30))
        await gate.began.acquire()
        error = await failure(asyncio.create_task(echo.say(Note(), timeout=30)))
        with pytest.raises(ServiceError) as streamed:
            await anext(echo.repeat(Note(), timeout=30))
        gate.go.set()
        await running
    assert error.code == streamed.value.code == Code.RESOURCE_EXHAUSTED
    assert "is busy: 1 calls run and 0 wait" in error.message
    assert error.retry_after == pytest.approx(0.05)
    assert gate.most == 1


async def test_a_call_that_gives_up_in_the_queue_never_runs(serve: Serve) -> None:
    gate, made, timeout = Gate(), list[Dispatcher](), 0.05
    async with serve(gate, admission=AdmissionOptions(max_concurrency=1), made=made) as echo:
        running = asyncio.create_task(echo.say(Note(number=1), timeout=30))
        await gate.began.acquire()
        admission = made[0].door.admission
        while not admission.expired + admission.cancelled:  # a machine that is busy needs longer to get there
            error = await failure(asyncio.create_task(echo.say(Note(number=2), timeout=timeout)))
            while admission.queued:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.001)
            timeout *= 3
        gate.go.set()
        await running
        await echo.say(Note(number=3), timeout=30)
    assert error.code == Code.DEADLINE_EXCEEDED
    assert gate.order == [1, 3]


async def test_what_cannot_be_done_before_its_deadline_is_not_begun_and_counted(serve: Serve) -> None:
    gate, made = Gate(), list[Dispatcher]()
    async with serve(gate, admission=AdmissionOptions(max_concurrency=1), made=made) as echo:
        first = asyncio.create_task(echo.say(Note(number=1), timeout=30))
        await gate.began.acquire()
        asyncio.get_running_loop().call_later(1.0, gate.go.set)
        await first  # a second is what a call takes, it has learned
        gate.go.clear()
        running = asyncio.create_task(echo.say(Note(number=2), timeout=30))
        await gate.began.acquire()
        error = await failure(asyncio.create_task(echo.say(Note(number=3), timeout=0.95)))
        with pytest.raises(ServiceError) as streamed:
            await anext(echo.repeat(Note(), timeout=0.95))
        gate.go.set()
        await running
    assert error.code == streamed.value.code == Code.RESOURCE_EXHAUSTED
    assert "is too busy to answer before the deadline" in error.message
    assert error.retry_after == -1.0
    assert gate.order == [1, 2]
    doors = [made[0].door]
    if isinstance(echo._transport, PoolTransport):
        doors.append(echo._transport.door)  # it knows as well as the other side what a call takes
    assert sum(door.admission.hopeless for door in doors) == 2


async def test_calls_that_gave_up_in_the_queue_are_counted(serve: Serve) -> None:
    gate, made = Gate(), list[Dispatcher]()
    async with serve(gate, admission=AdmissionOptions(max_concurrency=1), made=made) as echo:
        running = asyncio.create_task(echo.say(Note(number=1), timeout=30))
        await gate.began.acquire()
        admission = made[0].door.admission
        waiting = asyncio.create_task(echo.say(Note(number=2), timeout=30))
        while not admission.queued:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        waiting.cancel()
        while admission.queued:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
        gate.go.set()
        await running
    assert admission.cancelled == 1
    assert gate.order == [1]


async def test_a_stream_holds_its_place_until_it_is_left(serve: Serve) -> None:
    gate = Gate()
    gate.go.set()
    async with serve(gate, admission=AdmissionOptions(max_concurrency=1, max_queue=1)) as echo:
        async with echo.repeat(Note(), timeout=30) as replies:
            await anext(replies)
            waiting = asyncio.create_task(echo.say(Note(number=1), timeout=30))
            await asyncio.sleep(0)
            assert not waiting.done()
        assert (await waiting).number == 1


async def test_when_to_come_back_crosses_every_hop_as_it_was_said(serve: Serve) -> None:
    class Busy(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            raise ServiceError(Code.RESOURCE_EXHAUSTED, "later", retry_after=request.weight)

    async with serve(Busy()) as leaf:

        class Front(EchoBase):
            async def say(self, request: Note, context: Context) -> Note:
                return await leaf.say(request)

        async with serve(Front()) as front:
            for seconds in (1.25, 0.0, -1.0):
                error = await failure(asyncio.create_task(front.say(Note(weight=seconds), timeout=30)))
                assert error.retry_after == seconds
                assert error.path == ("echo", "echo")
                assert not error.unseen


async def test_a_chain_does_not_multiply_attempts(serve: Serve) -> None:
    attempts = 0

    class Leaf(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            nonlocal attempts
            attempts += 1
            raise ServiceError(Code.UNAVAILABLE, "down", retry_after=0.0)

    async with serve(Leaf()) as leaf:

        class Front(EchoBase):
            async def say(self, request: Note, context: Context) -> Note:
                return await leaf.say(request)

        async with serve(Front()) as front:
            error = await failure(asyncio.create_task(front.say(Note(), timeout=30)))
    assert error.code == Code.UNAVAILABLE
    assert error.path == ("echo", "echo")
    assert attempts in (1, 4), "one, or those of the one handle next to it"
