"""What is counted of calls is the same, whatever carried them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from services.echo.v1.echo_toolkit import EchoBase, Line, Note
from tests.conformance.conftest import Deploy, Serve
from toolkit.batching import BatchContext, batched
from toolkit.collect import Collector
from toolkit.context import Context
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError
from toolkit.policy.admission import AdmissionOptions
from toolkit.policy.balance import BalanceOptions
from toolkit.policy.hedge import HedgeOptions
from toolkit.policy.outlier import OutlierOptions
from toolkit.policy.retry import BudgetOptions, RetryOptions
from toolkit.transport.base import Call
from toolkit.transport.pool import HandleOptions

METHODS = {method.attribute: method for method in EchoBase.__contract__.methods}
SERVER = "grpc_server_call_duration_seconds"
LONG = 600.0
CALLS = 60
"""Often enough for a bad replica of two to be left out."""
CLIENT = "grpc_client_attempt_duration_seconds"


class Figures:
    """What a collector says of one deployment and its handles."""

    def __init__(self, dispatcher: Dispatcher, **handles: Any) -> None:
        self._collector = Collector()
        self._collector.add("echo", dispatcher, handles)

    def __getitem__(self, name: str) -> dict[tuple[str, ...], float]:
        """Labels, without the name of the contract → a number, of a histogram how many values it has; without the zeros."""
        counts = {
            tuple(label.rpartition("/")[2] for label in labels[1:]): sum(value[0])
            if isinstance(value, tuple)
            else value
            for found, labels, value in self._collector.samples()
            if found == name
        }
        return {labels: count for labels, count in counts.items() if count}


class Acts(EchoBase):
    """`ping` fails with the code that it is asked for; `repeat` sends one note, and goes on when the gate opens."""

    def __init__(self) -> None:
        self.gate, self.begun = asyncio.Event(), asyncio.Event()

    async def ping(self, request: Line, context: Context) -> Line:
        if request.number:
            raise ServiceError(Code(request.number), "as asked")
        return request

    async def say(self, request: Note, context: Context) -> Note:
        self.begun.set()
        await self.gate.wait()
        return request

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        yield request
        self.begun.set()
        await self.gate.wait()

    async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
        return [note async for note in requests][-1]


async def wait_for(figures: Figures, name: str, wanted: dict[tuple[str, ...], float]) -> None:
    """The end of a call that its caller has left is seen a moment later."""
    async with asyncio.timeout(20):
        while figures[name] != wanted:  # noqa: ASYNC110 - figures have no event
            await asyncio.sleep(0.01)


async def test_calls_are_counted_by_method_and_code(serve: Serve) -> None:
    made: list[Dispatcher] = []
    async with serve(Acts(), made=made) as echo:
        figures = Figures(made[0])
        for number in (0, Code.NOT_FOUND, 0, Code.ABORTED, Code.NOT_FOUND):
            await asyncio.gather(echo.ping(Line(number=number)), return_exceptions=True)
        await echo.join(notes(3))
        assert figures[SERVER] == {
            ("Ping", "OK"): 2,
            ("Ping", "NOT_FOUND"): 2,
            ("Ping", "ABORTED"): 1,
            ("Join", "OK"): 1,
        }
        assert figures["grpc_server_call_started_total"] == {("Ping",): 5, ("Join",): 1}
        assert figures["toolkit_server_queue_seconds"] == {("Ping",): 5, ("Join",): 1}


async def notes(count: int) -> AsyncIterator[Note]:
    for number in range(count):
        yield Note(number=number)


async def test_a_stream_counts_once_however_many_items_it_has(serve: Serve) -> None:
    made: list[Dispatcher] = []
    service = Acts()
    service.gate.set()
    async with serve(service, made=made) as echo:
        assert [note.number async for note in echo.repeat(Note(number=7))] == [7]
        assert Figures(made[0])[SERVER] == {("Repeat", "OK"): 1}


async def test_a_call_that_its_caller_leaves_is_cancelled(serve: Serve) -> None:
    made: list[Dispatcher] = []
    async with serve(Acts(), made=made) as echo:
        figures = Figures(made[0])
        async with aclosing(echo.repeat(Note())) as replies:
            await anext(replies)
            assert figures["toolkit_server_inflight"] == {(): 1}
            assert figures[SERVER] == {}
        await wait_for(figures, SERVER, {("Repeat", "CANCELLED"): 1})
        await wait_for(figures, "toolkit_server_inflight", {})


async def test_calls_that_wait_and_calls_that_are_refused_are_told_apart(serve: Serve) -> None:
    made: list[Dispatcher] = []
    service = Acts()
    async with serve(service, made=made, admission=AdmissionOptions(max_concurrency=1, max_queue=1)) as echo:
        figures = Figures(made[0])
        calls = [asyncio.create_task(echo.say(Note(number=number))) for number in range(2)]
        await wait_for(figures, "toolkit_server_queued", {(): 1})
        assert figures["toolkit_server_inflight"] == {(): 2}
        with pytest.raises(ServiceError, match="busy"):
            await echo.ping(Line())
        service.gate.set()
        await asyncio.gather(*calls)
        assert figures["toolkit_server_rejected_total"] == {("limit",): 1}
        assert figures[SERVER] == {("Say", "OK"): 2, ("Ping", "RESOURCE_EXHAUSTED"): 1}
        assert figures["toolkit_server_queue_seconds"] == {("Say",): 2}


async def test_batches_are_counted_with_their_sizes(serve: Serve) -> None:
    gate = asyncio.Event()

    class Batches(EchoBase):
        @batched(max_size=4)
        async def ping(self, requests: list[Line], context: BatchContext) -> list[Line]:
            await gate.wait()
            return requests

    made: list[Dispatcher] = []
    async with serve(Batches(), made=made) as echo:
        figures = Figures(made[0])
        first = asyncio.create_task(echo.ping(Line()))
        await wait_for(figures, "toolkit_server_queue_seconds", {("Ping",): 1})
        others = [asyncio.create_task(echo.ping(Line())) for _ in range(6)]
        await wait_for(figures, "toolkit_server_queued", {(): 6})
        gate.set()
        await asyncio.gather(first, *others)
        sizes = made[0].batchers[METHODS["ping"].path].sizes
        assert (sizes.counts[:4], sizes.sum) == ([1, 1, 1, 0], 7)  # of 1, of 2, of 4
        assert figures["toolkit_batch_compute_seconds"] == {("Ping",): 3}
        assert figures["toolkit_server_queue_seconds"] == {("Ping",): 7}


async def test_attempts_are_counted_by_target_and_code(deploy: Deploy) -> None:
    call = Call()
    async with deploy(Acts(), options=HandleOptions()) as handle:
        figures = Figures(Dispatcher(Acts(), timeout=30), leaf=handle)
        for number in (0, Code.NOT_FOUND, 0):
            await asyncio.gather(handle.unary(METHODS["ping"], Line(number=number), call), return_exceptions=True)
        async with aclosing(handle.server_stream(METHODS["repeat"], Note(), call)) as replies:  # type: ignore[type-var]
            await anext(replies)
        ours = ("leaf", "echo")
        assert figures[CLIENT] == {
            (*ours, "Ping", "OK"): 2,
            (*ours, "Ping", "NOT_FOUND"): 1,
            (*ours, "Repeat", "CANCELLED"): 1,
        }
        assert figures["grpc_client_attempt_started_total"] == {(*ours, "Ping"): 3, (*ours, "Repeat"): 1}
        assert figures["toolkit_client_replicas"] == {(*ours, "ready"): 1}


class Fails(EchoBase):
    """Counts its calls, and is not there for any of them."""

    begun = 0

    async def say(self, request: Note, context: Context) -> Note:
        self.begun += 1
        raise ServiceError(Code.UNAVAILABLE, "not now")


async def test_retries_and_ejections_are_counted(deploy: Deploy) -> None:
    bad, good = Fails(), Acts()
    good.gate.set()
    options = HandleOptions(
        retry=RetryOptions(initial_backoff=0.0),
        budget=BudgetOptions(reserve=100),
        balance=BalanceOptions(outlier=OutlierOptions(eject_for=LONG, max_eject_for=LONG)),
    )
    async with deploy(bad, good, options=options) as handle:
        figures = Figures(Dispatcher(Acts(), timeout=30), leaf=handle)
        for _ in range(CALLS):
            await handle.unary(METHODS["say"], Note(), Call())
        ours = ("leaf", "echo")
        assert figures[CLIENT] == {(*ours, "Say", "OK"): CALLS, (*ours, "Say", "UNAVAILABLE"): bad.begun}
        assert figures["toolkit_client_retries_total"] == {ours: bad.begun}
        assert figures["toolkit_client_ejections_total"] == {ours: 1}
        assert figures["toolkit_client_replicas"] == {(*ours, "ready"): 1, (*ours, "ejected"): 1}


async def test_hedges_are_counted_and_those_that_won(deploy: Deploy) -> None:
    slow, quick = Acts(), Acts()
    quick.gate.set()
    options = HandleOptions(hedge=HedgeOptions(delay=0.01), budget=BudgetOptions(reserve=100))
    async with deploy(slow, quick, options=options) as handle:
        figures = Figures(Dispatcher(Acts(), timeout=30), leaf=handle)
        ours = ("leaf", "echo")
        while not figures["toolkit_client_hedges_won_total"]:
            await handle.unary(METHODS["say"], Note(), Call())
        assert figures["toolkit_client_hedges_total"][ours] >= figures["toolkit_client_hedges_won_total"][ours]
        assert figures["toolkit_client_retries_total"] == {}
        assert figures[CLIENT][(*ours, "Say", "CANCELLED")] >= 1
