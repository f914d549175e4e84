"""Batched handlers behind their real handles: who shares a batch, what each caller gets, and who has gone meanwhile."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Line, Note
from toolkit.batching import BatchContext, Batcher, batched, size_class
from toolkit.context import Context, ambient
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, StartError
from toolkit.policy.admission import AdmissionOptions
from toolkit.service import Service, depends
from toolkit.testing import serve
from toolkit.transport.local import LocalTransport


class Shouts(EchoBase):
    """`ping` in batches of four; `failing` says what goes wrong with a text. Waits while its gate is shut."""

    def __init__(self, failing: Callable[[str], Any] = lambda text: None) -> None:
        self.failing = failing
        self.batches: list[list[str]] = []
        self.contexts: list[BatchContext] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()

    @batched(max_size=4)
    async def ping(self, requests: list[Line], context: BatchContext) -> list[Line | ServiceError]:
        self.batches.append([request.text for request in requests])
        self.contexts.append(context)
        self.started.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [self.failing(request.text) or Line(text=request.text.upper()) for request in requests]

    async def say(self, request: Note, context: Context) -> Note:
        return request


async def ask(client: EchoClient, *texts: str) -> list[str]:
    return [line.text for line in await asyncio.gather(*(client.ping(Line(text=text)) for text in texts))]


async def outcomes(client: EchoClient, *texts: str) -> list[str | Code]:
    """The reply's text or the error's code of each."""
    calls = (client.ping(Line(text=text)) for text in texts)
    found = await asyncio.gather(*calls, return_exceptions=True)
    return [each.code if isinstance(each, ServiceError) else each.text for each in found]  # type: ignore[union-attr]


def batcher(service: Service) -> Batcher:
    found = service.ping  # type: ignore[attr-defined]
    assert isinstance(found, Batcher)
    return found


@asynccontextmanager
async def served(service: Service, **options: Any) -> AsyncIterator[EchoClient]:
    """As `serve`, with the dispatcher's options."""
    transport = LocalTransport(Dispatcher(service, timeout=30, **options))
    try:
        yield EchoClient(transport)
    finally:
        await transport.close()


async def turns(count: int = 10) -> None:
    """Let the event loop run what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_caller_sends_one_and_the_handler_gets_what_came_together() -> None:
    service = Shouts()
    async with serve(service, EchoClient) as client:
        assert await ask(client, *"abcdef") == list("ABCDEF")
    assert service.batches == [list("abcd"), list("ef")]


async def test_calls_that_come_while_a_batch_runs_are_the_next() -> None:
    service = Shouts()
    service.gate.clear()
    async with serve(service, EchoClient) as client:
        first = asyncio.create_task(ask(client, "a"))
        await service.started.wait()
        others = [asyncio.create_task(ask(client, text)) for text in "bcd"]
        await turns()
        service.gate.set()
        await asyncio.gather(first, *others)
    assert service.batches == [["a"], ["b", "c", "d"]]


async def test_a_bad_request_fails_alone() -> None:
    service = Shouts(lambda text: ServiceError(Code.INVALID_ARGUMENT, "no") if text == "b" else None)
    async with serve(service, EchoClient) as client:
        assert await outcomes(client, *"abc") == ["A", Code.INVALID_ARGUMENT, "C"]
    assert service.batches == [["a", "b", "c"]]


async def test_an_unknown_exception_in_the_place_of_a_reply_is_internal_for_that_call_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Shouts(lambda text: ValueError("secret") if text == "b" else None)
    async with serve(service, EchoClient) as client:
        assert await outcomes(client, *"abc") == ["A", Code.INTERNAL, "C"]
    assert "ValueError: secret" in caplog.text


class Does(EchoBase):
    """`ping` does what it is given, in a batch."""

    def __init__(self, what: Callable[[list[Line], BatchContext], Any]) -> None:
        self.what = what

    @batched()
    async def ping(self, requests: list[Line], context: BatchContext) -> list[Line]:
        found = self.what(requests, context)
        return await found if asyncio.iscoroutine(found) else found  # type: ignore[no-any-return]  # any: that is tested


class DoesInThread(EchoBase):
    def __init__(self, what: Callable[[list[Line], BatchContext], Any]) -> None:
        self.what = what

    @batched()
    def ping(self, requests: list[Line], context: BatchContext) -> list[Line]:
        return self.what(requests, context)  # type: ignore[no-any-return]  # any: that is tested


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(requests: list[Line], context: BatchContext) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("kind", [Does, DoesInThread])
async def test_a_handler_s_own_error_is_that_of_every_call(kind: type[Does]) -> None:
    service = kind(raising(ServiceError(Code.UNAVAILABLE, "later", retry_after=2.0)))
    async with serve(service, EchoClient) as client:
        found = await asyncio.gather(*(client.ping(Line()) for _ in range(3)), return_exceptions=True)
    assert [(e.code, e.message, e.retry_after) for e in found if isinstance(e, ServiceError)] == [
        (Code.UNAVAILABLE, "later", 2.0)
    ] * 3


@pytest.mark.parametrize("kind", [Does, DoesInThread])
@pytest.mark.parametrize("error", [ValueError("secret"), StopIteration(), TimeoutError(), KeyError("k")])
async def test_an_unknown_exception_fails_all_and_is_logged_once(
    kind: type[Does], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(kind(raising(error)), EchoClient) as client:
        assert await outcomes(client, *"abc") == [Code.INTERNAL] * 3
    assert caplog.text.count("internal error") == 1
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([Line()], "3 requests need a list of 3 replies, not 1"),
        ([Line()] * 4, "3 requests need a list of 3 replies, not 4"),
        (None, "3 requests need a list of 3 replies, not NoneType"),
        (Line(), "3 requests need a list of 3 replies, not Line"),
        ([Line(), "text", Line()], "reply 1 must be Line or an error, not str"),
        ([Line(), Line(), Note()], "reply 2 must be Line or an error, not Note"),
    ],
)
async def test_replies_that_cannot_be_told_apart_fail_all_and_the_log_says_why(
    made: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(Does(lambda requests, context: made), EchoClient) as client:
        assert await outcomes(client, *"abc") == [Code.INTERNAL] * 3
    assert f"/services.echo.v1.Echo/Ping is batched: {said}" in caplog.text


async def test_a_plain_function_runs_beside_the_event_loop_and_knows_its_call() -> None:
    def work(requests: list[Line], context: BatchContext) -> list[Line]:
        assert ambient.get() is context
        return [Line(text=threading.current_thread().name, number=threading.get_ident()) for _ in requests]

    async with serve(DoesInThread(work), EchoClient) as client:
        one, other = await asyncio.gather(client.ping(Line()), client.ping(Line()))
        later = await client.ping(Line())
    assert one.number == other.number == later.number != threading.get_ident()
    assert one.text.startswith("ping")


async def test_one_that_gives_up_in_the_queue_is_not_computed() -> None:
    service = Shouts()
    service.gate.clear()
    async with serve(service, EchoClient) as client:
        first = asyncio.create_task(ask(client, "a"))
        await service.started.wait()
        b, c = (asyncio.create_task(ask(client, text)) for text in "bc")
        await turns()
        b.cancel()
        await turns()
        service.gate.set()
        await asyncio.gather(first, c)
    assert service.batches == [["a"], ["c"]]
    assert batcher(service).figures.cancelled == 1


async def test_one_whose_deadline_passes_in_the_queue_is_not_computed() -> None:
    service = Shouts()
    service.gate.clear()
    async with serve(service, EchoClient) as client:
        first = asyncio.create_task(ask(client, "a"))
        await service.started.wait()
        with pytest.raises(ServiceError) as late:
            await client.ping(Line(text="b"), timeout=0.3)
        service.gate.set()
        await first
    assert late.value.code == Code.DEADLINE_EXCEEDED
    assert service.batches == [["a"]]
    assert batcher(service).figures.late == 1


async def test_a_batch_goes_on_while_somebody_waits_for_it() -> None:
    service = Shouts()
    service.gate.clear()
    async with serve(service, EchoClient) as client:
        a, b = (asyncio.create_task(ask(client, text)) for text in "ab")
        await service.started.wait()
        a.cancel()
        await turns()
        assert not service.contexts[0].is_abandoned
        service.gate.set()
        assert await b == ["B"]
    assert service.cancelled == 0


async def test_a_batch_whose_callers_have_all_gone_is_cancelled_and_the_next_one_runs() -> None:
    service = Shouts()
    service.gate.clear()
    async with serve(service, EchoClient) as client:
        calls = [asyncio.create_task(ask(client, text)) for text in "ab"]
        await service.started.wait()
        for call in calls:
            call.cancel()
        await turns()
        assert service.cancelled == 1
        service.gate.set()
        assert await ask(client, "c") == ["C"]
    assert service.batches == [["a", "b"], ["c"]]


@pytest.mark.parametrize("after", range(8))
async def test_one_that_gives_up_in_the_moment_that_its_batch_starts_stops_nobody_else(after: int) -> None:
    """Whichever of the event loop's turns that is in."""
    service = Shouts()
    service.gate.clear()
    async with serve(service, EchoClient) as client:
        first = asyncio.create_task(client.ping(Line(text="a")))
        await turns(after)
        first.cancel()
        await asyncio.wait([first])
        service.gate.set()
        assert (await client.ping(Line(text="b"), timeout=5)).text == "B"
    assert batcher(service).running == 0


async def test_a_thread_that_nobody_waits_for_can_see_so_and_is_waited_for_before_the_next() -> None:
    started, over, done = threading.Event(), threading.Event(), asyncio.Event()
    seen: list[tuple[str, bool]] = []
    loop = asyncio.get_running_loop()

    def work(requests: list[Line], context: BatchContext) -> list[Line]:
        loop.call_soon_threadsafe(done.set)
        started.set()
        over.wait(10)
        seen.append((requests[0].text, context.is_abandoned))
        return requests

    async with serve(DoesInThread(work), EchoClient) as client:
        first = asyncio.create_task(ask(client, "a"))
        await done.wait()
        first.cancel()
        await turns()
        second = asyncio.create_task(ask(client, "b"))
        await turns()
        over.set()
        assert await second == ["b"]
    assert seen == [("a", True), ("b", False)]


async def test_a_handler_that_fails_by_a_cancellation_of_its_own_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(Does(raising(asyncio.CancelledError())), EchoClient) as client:
        assert await outcomes(client, *"ab") == [Code.INTERNAL] * 2
        assert await outcomes(client, "c") == [Code.INTERNAL]


async def test_a_batch_has_the_time_of_the_call_that_waits_longest() -> None:
    service = Shouts()
    async with serve(service, EchoClient) as client:
        await asyncio.gather(
            client.ping(Line(), timeout=5), client.ping(Line(), timeout=20), client.ping(Line(), timeout=9)
        )
    (context,) = service.contexts
    assert context.deadline is not None
    assert context.deadline.at == max(call.deadline.at for call in context.calls if call.deadline is not None)
    assert 15 < context.deadline.remaining() <= 20


class Asks(EchoBase):
    """`ping` asks another service once per batch."""

    inner = depends(EchoClient)

    @batched()
    async def ping(self, requests: list[Line], context: BatchContext) -> list[Line]:
        reply = await self.inner.ping(Line())
        return [reply for _ in requests]


class Tells(EchoBase):
    """`ping` remembers the metadata that came with it."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, str | bytes]] = []
        self.remaining: list[float | None] = []

    async def ping(self, request: Line, context: Context) -> Line:
        self.metadata.append(dict(context.metadata))
        self.remaining.append(context.remaining())
        return request


async def asked(
    *metadata: dict[str, str | bytes], forward: tuple[str, ...] = ()
) -> tuple[dict[str, str | bytes], Tells]:
    """What a call from within a batch of these sends on."""
    inner, outer = Tells(), Asks()
    async with served(inner) as client, served(outer, forward=forward) as calls:
        outer.inner = client
        await asyncio.gather(*(calls.ping(Line(), metadata=each, timeout=7) for each in metadata))
    (sent,) = inner.metadata
    return sent, inner


async def test_a_call_from_within_a_batch_carries_the_ids_of_all_and_the_deadline() -> None:
    sent, inner = await asked({"x-request-id": "one"}, {"x-request-id": "two"}, {"x-request-id": "one"})
    assert sent["x-request-id"] == "one,two"
    assert inner.remaining[0] is not None
    assert 0 < inner.remaining[0] <= 7


async def test_one_id_for_all_stays_as_it_is() -> None:
    sent, _ = await asked(*[{"x-request-id": "one", "traceparent": "t"}] * 2)
    assert sent == {"x-request-id": "one", "traceparent": "t"}


async def test_the_trace_is_that_of_the_first_and_other_keys_go_on_where_all_agree() -> None:
    first = {"x-request-id": "1", "traceparent": "t1", "x-tenant": "a", "x-lang": "en"}
    second = {"x-request-id": "2", "traceparent": "t2", "x-tenant": "b", "x-lang": "en"}
    sent, _ = await asked(first, second, forward=("x-tenant", "x-lang"))
    assert sent == {"x-request-id": "1,2", "traceparent": "t1", "x-lang": "en"}


async def test_more_ids_than_fit_are_counted() -> None:
    sent, _ = await asked(*({"x-request-id": f"{n:0100}"} for n in range(20)))
    ids = str(sent["x-request-id"]).split(",")
    assert len(str(sent["x-request-id"])) <= 520
    assert ids[-1] == f"+{20 - (len(ids) - 1)}"


async def test_reply_metadata_of_a_batch_goes_to_each() -> None:
    def mark(requests: list[Line], context: BatchContext) -> list[Line]:
        context.reply_metadata["x-model"] = "m"
        context.calls[1].reply_metadata["x-second"] = "yes"
        return requests

    service = Does(mark)
    found = [Context(Echo.__contract__.methods[0]) for _ in range(2)]
    dispatcher = Dispatcher(service, timeout=5)
    method = service.__contract__.methods[0]
    await asyncio.gather(*(asyncio.create_task(dispatcher.reply(method, Line(), each)) for each in found))
    assert [each.reply_metadata for each in found] == [{"x-model": "m"}, {"x-model": "m", "x-second": "yes"}]


async def test_calls_that_wait_for_a_batch_take_no_turn_of_those_that_run() -> None:
    """However few may run at once, batches fill, and other methods answer meanwhile."""
    service = Shouts()
    service.gate.clear()
    async with served(service, admission=AdmissionOptions(max_concurrency=1, max_queue=0)) as client:
        first = asyncio.create_task(ask(client, "a"))
        await service.started.wait()
        others = asyncio.create_task(ask(client, *"bcde"))
        await turns()
        assert (await client.say(Note(text="in between"))).text == "in between"
        service.gate.set()
        await asyncio.gather(first, others)
    assert service.batches == [["a"], list("bcde")]


async def test_calls_in_batches_and_those_that_wait_for_one_are_the_load_too() -> None:
    service = Shouts()
    dispatcher = Dispatcher(service, timeout=30)
    client = EchoClient(LocalTransport(dispatcher))
    await ask(client, "a")
    assert dispatcher.load == (0, 0, 0.0)
    service.gate.clear()
    service.started.clear()
    first = asyncio.create_task(ask(client, *"ab"))
    await service.started.wait()
    others = asyncio.create_task(ask(client, *"cdefg"))
    await turns()
    running, waiting, seconds = dispatcher.load
    assert (running, waiting) == (2, 5)
    assert seconds > 0  # a full batch is before a new one
    service.gate.set()
    await asyncio.gather(first, others)
    assert dispatcher.load == (0, 0, 0.0)


async def test_beyond_the_queue_calls_are_refused_at_once() -> None:
    service = Shouts()
    service.gate.clear()
    async with served(service, batching={"ping": {"max_queue": 2, "max_size": 2}}) as client:
        calls = [asyncio.create_task(outcomes(client, str(n))) for n in range(6)]
        await service.started.wait()
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        service.gate.set()
        found = [outcome for call in calls for outcome in await call]
    assert found == ["0", "1", "2", "3", Code.RESOURCE_EXHAUSTED, Code.RESOURCE_EXHAUSTED]
    assert service.batches == [["0", "1"], ["2", "3"]]


class Sorted(EchoBase):
    """`ping` in batches of like length, of thirty characters at most."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    @staticmethod
    def length(line: Line) -> int:
        if not line.text:
            raise ServiceError(Code.INVALID_ARGUMENT, "text: empty")
        return len(line.text)

    @batched(pad_by=lambda line: size_class(len(line.text)), cost=length, max_cost=30)
    async def ping(self, requests: list[Line], context: BatchContext) -> list[Line]:
        self.batches.append([len(request.text) for request in requests])
        return requests


async def test_long_and_short_share_no_batch_and_a_batch_costs_no_more_than_it_may() -> None:
    service = Sorted()
    async with serve(service, EchoClient) as client:
        await ask(client, *("x" * n for n in (3, 16, 4, 9, 12, 50, 3)))
    assert service.batches == [[3, 4, 3], [16, 9], [12], [50]]


class Confused(EchoBase):
    """Its functions return what is no cost, and no key, for some."""

    @staticmethod
    def cost(line: Line) -> Any:
        return None if line.text == "no cost" else 1

    @staticmethod
    def key(line: Line) -> Any:
        return [] if line.text == "no key" else 0

    @batched(pad_by=key, cost=cost, max_cost=30)
    async def ping(self, requests: list[Line], context: BatchContext) -> list[Line]:
        return requests


@pytest.mark.parametrize("odd", ["no cost", "no key"])
async def test_what_is_no_cost_or_no_key_fails_alone(odd: str, caplog: pytest.LogCaptureFixture) -> None:
    service = Confused()
    async with serve(service, EchoClient) as client:
        assert await outcomes(client, "a", odd, "b") == ["a", Code.INTERNAL, "b"]
        assert (await client.ping(Line(text="c"), timeout=5)).text == "c"
    assert batcher(service).queued == 0


async def test_what_the_cost_refuses_fails_alone() -> None:
    service = Sorted()
    async with serve(service, EchoClient) as client:
        assert await outcomes(client, "abc", "", "abcd") == ["abc", Code.INVALID_ARGUMENT, "abcd"]
    assert service.batches == [[3, 4]]


@pytest.mark.parametrize(("shorter", "longer", "same"), [(9, 16, True), (16, 17, False), (1, 2, False), (0, 1, True)])
def test_lengths_within_a_factor_of_two_are_of_one_size(shorter: int, longer: int, same: bool) -> None:
    assert (size_class(shorter) == size_class(longer)) is same


async def test_what_is_measured_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="toolkit")
    service = Shouts()
    async with served(service) as client:
        await ask(client, *"abcde")
    figures = batcher(service).figures
    assert (figures.batches, figures.requests) == (2, 5)
    assert [record.size for record in figures.recent] == [4, 1]
    assert figures.queue_seconds >= figures.recent[-1].queued > 0
    assert figures.compute_seconds >= sum(record.computed for record in figures.recent) > 0
    assert "/services.echo.v1.Echo/Ping: a batch of 4," in caplog.text
    assert service.contexts[0].request_id in caplog.text


async def test_the_graph_file_s_limits_win_under_either_name() -> None:
    for name in ("ping", "Ping"):
        service = Shouts()
        async with served(service, batching={name: {"max_size": 2}}) as client:
            await ask(client, *"abcd")
        assert service.batches == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"pong": {}}, "batching: pong is no batched method of services.echo.v1.Echo"),
        ({"say": {}}, "batching: say is no batched method"),
        ({"ping": {"max_size": 0}}, "batching: ping: max_size: 0 is not 1 or more"),
        ({"ping": {"max_cost": 8}}, "batching: ping: max_cost: there is no cost function"),
    ],
)
def test_limits_that_fit_nothing_stop_the_start(said: Any, fault: str) -> None:
    with pytest.raises(StartError, match=fault):
        Dispatcher(Does(lambda requests, context: requests), timeout=1, batching=said)


def test_a_cost_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        batched(cost=lambda request: 1.0)


async def test_each_instance_has_batches_of_its_own() -> None:
    one, other = Shouts(), Shouts()
    async with serve(one, EchoClient) as first, serve(other, EchoClient) as second:
        await asyncio.gather(ask(first, "a"), ask(second, "b"))
    assert (one.batches, other.batches) == ([["a"]], [["b"]])


class Quieter(Shouts):
    async def ping(self, request: Line, context: Context) -> Line:
        loud = await super().ping(request, context)
        return Line(text=loud.text.lower())


async def test_a_subclass_may_call_the_batched_handler_with_one_request() -> None:
    service = Quieter()
    async with serve(service, EchoClient) as client:
        assert await ask(client, *"ab") == ["a", "b"]
        assert await ask(client, "c") == ["c"]
    assert service.batches == [["a", "b"], ["c"]]


def test_it_works_on_one_event_loop_after_the_other() -> None:
    service = DoesInThread(lambda requests, context: requests)

    async def once() -> list[str]:
        async with served(service) as client:
            return await ask(client, *"ab")

    assert [asyncio.run(once()) for _ in range(3)] == [["a", "b"]] * 3


class Detector(EchoBase):
    """One image → as many crops as it holds, each classified: one call a crop."""

    classifier = depends(EchoClient)

    async def say(self, request: Note, context: Context) -> Note:
        crops = [Line(text=f"{request.text}{n}") for n in range(request.times)]
        found = await asyncio.gather(*(self.classifier.ping(crop) for crop in crops))
        return Note(tags=[line.text for line in found])


async def test_fan_out_is_batched_anew_across_requests() -> None:
    """The crops of several images fill batches together, however many each image has."""
    classifier, detector = Shouts(), Detector()
    async with serve(classifier, EchoClient) as crops, serve(detector, EchoClient) as images:
        detector.classifier = crops
        asks = [Note(text=name, times=count) for name, count in (("x", 3), ("y", 0), ("z", 5))]
        replies = await asyncio.gather(*(images.say(ask) for ask in asks))
    assert [reply.tags for reply in replies] == [["X0", "X1", "X2"], [], ["Z0", "Z1", "Z2", "Z3", "Z4"]]
    assert [len(batch) for batch in classifier.batches] == [4, 4]
    assert {text[0] for text in classifier.batches[0]} == {"x", "z"}


@pytest.mark.parametrize("seed", range(5))
async def test_under_a_storm_of_calls_each_caller_gets_its_own_and_nothing_is_left(seed: int) -> None:
    chance = Random(seed)

    class Storm(EchoBase):
        @batched(max_size=5, pad_by=lambda line: line.number % 3, concurrency=2)
        async def ping(self, requests: list[Line], context: BatchContext) -> list[Line | ServiceError]:
            await turns(chance.randint(0, 20))
            if chance.random() < 0.1:
                raise ServiceError(Code.UNAVAILABLE, "the whole batch")
            assert len({request.number % 3 for request in requests}) == 1
            return [
                ServiceError(Code.NOT_FOUND, request.text) if request.number % 7 == 0 else Line(text=request.text)
                for request in requests
            ]

    async def call(client: EchoClient, number: int) -> str:
        await turns(chance.randint(0, 30))
        try:
            return (await client.ping(Line(text=str(number), number=number), timeout=60)).text
        except ServiceError as error:
            return error.message

    service = Storm()
    dispatcher = Dispatcher(service, timeout=60)
    transport = LocalTransport(dispatcher)
    calls = [asyncio.create_task(call(EchoClient(transport), number)) for number in range(120)]
    gone = set(chance.sample(range(120), 40))
    for number in gone:
        await turns(1)
        calls[number].cancel()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(found[n] in (str(n), "the whole batch") for n in range(120) if n not in gone)
    await transport.close()
    await turns()
    batches = batcher(service)
    assert (batches.queued, batches.running, dispatcher.in_flight) == (0, 0, 0)
