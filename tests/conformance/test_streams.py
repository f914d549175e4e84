"""Streams as values: one call's replies are another's requests, and nothing on the way is lost, kept or made up."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from tests.conformance.conftest import Serve
from toolkit.context import Context
from toolkit.errors import Code, ServiceError


class Writer(EchoBase):
    """Makes notes without end, or until it fails, and says how far it is."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.made = 0
        self.ended = asyncio.Event()

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        try:
            while self.made != self.fails_at:
                self.made += 1
                yield Note(number=self.made - 1, blob=request.blob)
            raise ServiceError(Code.DATA_LOSS, "the ink is dry")
        finally:
            self.ended.set()


class Reviewer(EchoBase):
    """Sends on what it gets, and says how a stream of requests ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.ended = asyncio.Event()

    async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
        return Note(number=len([note async for note in self.read(requests)]))

    async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
        async for note in self.read(requests):
            yield note

    async def read(self, requests: AsyncIterator[Note]) -> AsyncIterator[Note]:
        try:
            async for note in requests:
                yield note
            self.ends.append("whole")
        except (asyncio.CancelledError, GeneratorExit):  # it waits for the next note, or for its own to be read
            self.ends.append("cancelled")
            raise
        finally:
            self.ended.set()


class Middle(EchoBase):
    """One model's stream into the next."""

    def __init__(self, writer: EchoClient, reviewer: EchoClient) -> None:
        self.writer = writer
        self.reviewer = reviewer

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        async for note in self.reviewer.chat(self.writer.repeat(request)):
            yield note


@asynccontextmanager
async def chained(serve: Serve, writer: EchoBase, reviewer: EchoBase) -> AsyncIterator[EchoClient]:
    """writer → reviewer, composed by a service of their own."""
    async with AsyncExitStack() as stack:
        handles = [await stack.enter_async_context(serve(each)) for each in (writer, reviewer)]
        yield await stack.enter_async_context(serve(Middle(*handles)))


async def numbers(notes: AsyncIterator[Note]) -> list[int]:
    return [note.number async for note in notes]


def mixed(count: int, seed: int = 0) -> list[Note]:
    sizes = random.Random(seed)
    data = sizes.randbytes(20_000)
    return [Note(number=n, blob=data[: int(20_000 ** sizes.random()) - 1]) for n in range(count)]


async def each(notes: list[Note]) -> AsyncIterator[Note]:
    for note in notes:
        yield note


async def soon(event: asyncio.Event) -> None:
    await asyncio.wait_for(event.wait(), 10)


async def test_items_of_all_sizes_keep_their_boundaries_and_their_order(serve: Serve) -> None:
    notes = mixed(300)
    async with serve(Echo()) as echo:
        assert [note async for note in echo.chat(echo.chat(each(notes), timeout=30), timeout=30)] == notes


async def test_the_next_service_works_while_the_first_still_writes(serve: Serve) -> None:
    writer = Writer()
    async with chained(serve, writer, Reviewer()) as graph, graph.repeat(Note()) as notes:
        assert [(await anext(notes)).number for _ in range(10)] == list(range(10))
        assert not writer.ended.is_set()
    await soon(writer.ended)


async def test_a_producer_s_error_reaches_the_consumer_after_items_before_it_with_its_own_path(serve: Serve) -> None:
    reviewer, found = Reviewer(), []
    async with serve(Writer(fails_at=3)) as writer, serve(reviewer) as other:

        async def read() -> None:
            async for note in other.chat(writer.repeat(Note(), timeout=20), timeout=20):
                found.append(note.number)

        with pytest.raises(ServiceError, match="the ink is dry") as caught:
            await read()
        await soon(reviewer.ended)
    assert (caught.value.code, caught.value.path) == (Code.DATA_LOSS, ("echo",))
    assert found == [0, 1, 2]
    assert reviewer.ends == ["cancelled"], "a stream that failed does not look complete"


async def test_a_producer_s_error_crosses_the_service_that_composes(serve: Serve) -> None:
    found = []

    async def read() -> None:
        async for note in graph.repeat(Note(), timeout=20):
            found.append(note.number)

    async with chained(serve, Writer(fails_at=3), Reviewer()) as graph:
        with pytest.raises(ServiceError, match="the ink is dry") as caught:
            await read()
    assert (caught.value.code, caught.value.path) == (Code.DATA_LOSS, ("echo", "echo"))
    assert found == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
async def test_a_producer_s_error_waits_for_a_service_that_is_behind(serve: Serve, count: int) -> None:
    class Late(Reviewer):
        async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
            yield Note(number=-1)
            await soon(go)
            async for note in self.read(requests):
                yield note

        async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
            await soon(go)
            return await super().join(requests, context)

    async def fails() -> AsyncIterator[Note]:
        for number in range(count):
            sent.append(number)
            yield Note(number=number)
        sent.append(count)
        raise ValueError("out of paper")

    async def read() -> None:
        async for note in late.chat(fails(), timeout=20):
            found.append(note.number)

    reviewer, found = Late(), list[int]()
    async with serve(reviewer) as late:
        for call in (read, lambda: late.join(fails(), timeout=20)):
            go, sent = asyncio.Event(), list[int]()
            reading = asyncio.ensure_future(call())
            await settled(sent)  # it has failed, unless it is held back
            go.set()
            with pytest.raises(ValueError, match="out of paper"):
                await reading
    assert found == [-1, *range(count)]
    assert reviewer.ends == ["cancelled"] * 2


@pytest.mark.parametrize("turn", range(5))
async def test_a_stream_of_requests_that_is_cut_off_never_looks_complete(serve: Serve, turn: int) -> None:
    reviewer, sent = Reviewer(), asyncio.Event()

    async def stops() -> AsyncIterator[Note]:
        for _ in range(turn):
            yield Note()
        sent.set()
        await asyncio.Event().wait()

    async with serve(reviewer) as echo:
        for call in (echo.join(stops(), timeout=20), numbers(echo.chat(stops(), timeout=20))):
            sent.clear()
            reviewer.ended.clear()
            reading = asyncio.ensure_future(call)
            await sent.wait()
            await asyncio.sleep(0.01)  # so that the handler is somewhere in the stream, wherever
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await echo.join(each([]), timeout=20)
    assert reviewer.ends.count("whole") == 1, "that of the last, whichever ends last"
    assert set(reviewer.ends) <= {"whole", "cancelled"}


async def test_leaving_the_block_stops_every_producer_up_the_chain(serve: Serve) -> None:
    writer, reviewer = Writer(), Reviewer()
    async with chained(serve, writer, reviewer) as graph:
        async with graph.repeat(Note()) as notes:
            await anext(notes)
        await asyncio.gather(soon(writer.ended), soon(reviewer.ended))
    assert reviewer.ends == ["cancelled"]


async def test_cancelling_the_consumer_s_task_stops_every_producer(serve: Serve) -> None:
    writer, reviewer, began = Writer(), Reviewer(), asyncio.Event()
    async with chained(serve, writer, reviewer) as graph:

        async def read() -> None:
            async for _ in graph.repeat(Note()):
                began.set()

        reading = asyncio.create_task(read())
        await soon(began)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.gather(soon(writer.ended), soon(reviewer.ended))


async def test_dropping_a_stream_half_read_stops_every_producer(serve: Serve) -> None:
    writer, reviewer = Writer(), Reviewer()
    async with chained(serve, writer, reviewer) as graph:
        async for _ in graph.repeat(Note()):
            break
        gc.collect()
        await asyncio.gather(soon(writer.ended), soon(reviewer.ended))


async def test_a_service_that_ends_early_closes_the_stream_that_it_was_given(serve: Serve) -> None:
    class Hasty(EchoBase):
        async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
            return await anext(requests)

        async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
            yield await anext(requests)

    async with serve(Hasty()) as hasty:
        for call in (hasty.join, lambda stream: numbers(hasty.chat(stream))):
            writer = Writer()
            async with serve(writer) as source:
                stream = source.repeat(Note())  # a name of its own, so that nothing but the call closes it
                await call(stream)
                await soon(writer.ended)


async def test_a_call_that_is_refused_closes_the_stream_that_it_was_given(serve: Serve) -> None:
    async with serve(EchoBase()) as refusing:
        for call in (refusing.join, lambda stream: numbers(refusing.chat(stream))):
            writer = Writer()
            async with serve(writer) as source:
                stream = source.repeat(Note())
                await anext(stream)
                with pytest.raises(ServiceError, match="UNIMPLEMENTED"):
                    await call(stream)
                await soon(writer.ended)


async def test_a_slow_reader_holds_its_writer_back(serve: Serve) -> None:
    writer = Writer()
    async with serve(writer) as echo, echo.repeat(Note(blob=bytes(1000))) as notes:
        await anext(notes)
        made = -1
        while made != writer.made:
            made = writer.made
            await asyncio.sleep(0.05)
        assert made < 100


async def sends_without_end(sent: list[int], size: int) -> AsyncIterator[Note]:
    while True:
        sent.append(len(sent))
        yield Note(number=len(sent), blob=bytes(size))


async def settled(sent: list[int]) -> int:
    """How many were sent once no more are."""
    seen = -1
    while seen != len(sent):
        seen = len(sent)
        await asyncio.sleep(0.05)
    return seen


@pytest.mark.parametrize("size", [0, 1000, 100_000])
async def test_a_slow_service_holds_its_caller_back(serve: Serve, size: int) -> None:
    class Slow(EchoBase):
        async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
            await go.wait()
            return Note(number=(await anext(requests)).number)

        async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
            yield Note(number=(await anext(requests)).number)
            await go.wait()
            for _ in range(300):
                yield await anext(requests)

    async with serve(Slow()) as echo:
        go, sent = asyncio.Event(), list[int]()
        joining = asyncio.ensure_future(echo.join(sends_without_end(sent, size), timeout=20))
        assert await settled(sent) <= 70
        go.set()
        assert (await joining).number == 1
        go, sent = asyncio.Event(), list[int]()
        async with echo.chat(sends_without_end(sent, size), timeout=20) as notes:
            assert (await anext(notes)).number == 1
            assert await settled(sent) <= 75
            go.set()
            assert [(await anext(notes)).number for _ in range(300)] == list(range(2, 302))


async def test_a_producer_runs_in_its_caller_s_context(serve: Serve) -> None:
    seen: list[float | None] = []

    class Front(EchoBase):
        def __init__(self, to: EchoClient) -> None:
            self.to = to

        async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
            async def mine() -> AsyncIterator[Note]:
                yield await self.to.say(Note())

            return await self.to.join(mine(), timeout=5)

        async def say(self, request: Note, context: Context) -> Note:
            seen.append(context.remaining())
            return request

    async with AsyncExitStack() as stack:
        leaf = await stack.enter_async_context(serve(Front(None)))  # type: ignore[arg-type]  # it calls nobody

        class Leaf(Front):
            async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
                return await anext(requests)

        leaf = await stack.enter_async_context(serve(Leaf(leaf)))
        front = await stack.enter_async_context(serve(Front(leaf)))
        await front.join(each([]), timeout=20)
    assert seen[0] is not None
    assert seen[0] > 10, "the deadline of the call that it feeds is not its own"


async def test_what_a_stream_of_requests_waits_for_may_be_cancelled_and_the_caller_hears_so(serve: Serve) -> None:
    async def careless() -> AsyncIterator[Note]:
        yield Note()
        task = asyncio.ensure_future(asyncio.Event().wait())
        task.cancel()
        await task

    async with serve(Echo()) as echo:
        with pytest.raises(ServiceError, match="CANCELLED"):
            await echo.join(careless(), timeout=20)
        with pytest.raises(ServiceError, match="CANCELLED"):
            await numbers(echo.chat(careless(), timeout=20))


async def test_a_stream_that_makes_nothing_for_too_long_is_ended(serve: Serve) -> None:
    class Stalls(EchoBase):
        async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
            try:
                yield request
                await asyncio.Event().wait()
            finally:
                ended.set()

    ended = asyncio.Event()
    async with serve(Stalls(), idle_timeout=0.05) as echo:
        notes = echo.repeat(Note())
        await anext(notes)
        with pytest.raises(ServiceError, match="sent no item for 0.05 s") as caught:
            await anext(notes)
        await soon(ended)
    assert caught.value.code == Code.DEADLINE_EXCEEDED


async def test_a_stream_is_not_idle_while_its_reader_is(serve: Serve) -> None:
    async with serve(Echo(), idle_timeout=0.05) as echo, echo.repeat(Note(times=500, blob=bytes(1000))) as notes:
        assert (await anext(notes)).number == 0
        await asyncio.sleep(0.2)  # longer than the writer may take
        assert len([note async for note in notes]) == 499
