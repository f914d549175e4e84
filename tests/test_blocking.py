from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.streamers import BaseStreamer

from toolkit.blocking import ModelThread, from_blocking, from_pushing

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


class Counting:
    """A generator, and what a test wants to know of it."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.made = 0
        self.fails_at = fails_at
        self.threads: set[str] = set()
        self.began = threading.Event()
        self.go = threading.Event()
        self.closed = threading.Event()
        self.fifth = threading.Event()
        self.sixth = threading.Event()

    def numbers(self) -> Iterator[int]:
        try:
            while self.made != self.fails_at:
                self.threads.add(threading.current_thread().name)
                self.made += 1
                {5: self.fifth, 6: self.sixth}.get(self.made, threading.Event()).set()
                yield self.made - 1
            raise LookupError("no more")
        finally:
            self.threads.add(threading.current_thread().name)
            self.closed.set()

    def held(self) -> Iterator[int]:
        """Holds its thread before each item."""
        try:
            while True:
                self.began.set()
                self.go.wait(10)
                yield 1
        finally:
            self.closed.set()


@pytest.fixture
def one_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as executor:
        yield executor


async def take(items: AsyncIterator[int], count: int) -> list[int]:
    return [await anext(items) for _ in range(count)]


@pytest.mark.parametrize("ahead", [1, 2, 100])
async def test_every_item_arrives_in_order(ahead: int) -> None:
    assert [n async for n in from_blocking(range(5000), ahead=ahead)] == list(range(5000))
    assert [n async for n in from_blocking(list, ahead=ahead)] == []


async def test_an_error_comes_after_the_items_before_it() -> None:
    counting, found = Counting(fails_at=3), []

    async def read() -> None:
        async for number in from_blocking(counting.numbers, ahead=10):
            found.append(number)

    with pytest.raises(LookupError, match="no more"):
        await read()
    assert found == [0, 1, 2]


async def test_what_a_loop_cannot_carry_comes_as_a_runtime_error() -> None:
    def leaves() -> Iterator[int]:
        raise SystemExit(3)
        yield 1

    def stops(push: Callable[[int], None]) -> None:
        next(iter(()))

    with pytest.raises(RuntimeError, match="SystemExit 3"):
        await anext(from_blocking(leaves))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await anext(from_pushing(stops))


async def test_it_runs_no_further_ahead_than_it_may() -> None:
    counting = Counting()
    async with aclosing(from_blocking(counting.numbers, ahead=3)) as numbers:
        assert await take(numbers, 2) == [0, 1]
        await asyncio.to_thread(counting.fifth.wait, 10)
        await asyncio.to_thread(counting.sixth.wait, 0.05)
        assert counting.made == 5


async def test_a_generator_runs_and_ends_in_one_thread(one_thread: ThreadPoolExecutor) -> None:
    counting = Counting()
    async with aclosing(from_blocking(counting.numbers(), executor=one_thread)) as numbers:
        await take(numbers, 10)
    assert counting.closed.is_set()
    assert counting.threads == {"mine_0"}


async def test_leaving_ends_it_at_the_next_item_and_waits_for_that() -> None:
    counting = Counting()
    numbers = from_blocking(counting.held)
    reading = asyncio.ensure_future(anext(numbers))
    await asyncio.to_thread(counting.began.wait, 10)
    reading.cancel()
    for _ in range(100):
        await asyncio.sleep(0)
    assert not reading.done(), "the thread still runs"
    counting.go.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert counting.closed.is_set()


async def test_a_reader_that_is_cancelled_while_it_works_stops_it_too() -> None:
    counting, reached = Counting(), asyncio.Event()

    async def read() -> None:
        async with aclosing(from_blocking(counting.numbers)) as numbers:
            await take(numbers, 10)
            reached.set()
            await asyncio.Event().wait()

    reader = asyncio.create_task(read())
    await reached.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert counting.closed.is_set()


async def test_the_caller_s_context_variables_are_seen() -> None:
    WHO.set("the caller")
    source = from_blocking(lambda: iter([WHO.get()]))
    WHO.set("somebody else")
    assert [who async for who in source] == ["the caller"]


async def test_the_loop_runs_on_while_the_work_blocks() -> None:
    counting = Counting()
    async with aclosing(from_blocking(counting.held)) as items:
        reading = asyncio.ensure_future(anext(items))
        await asyncio.to_thread(counting.began.wait, 10)  # were the loop blocked, nobody could let it go
        counting.go.set()
        assert await reading == 1


async def test_with_one_thread_streams_take_turns_and_one_that_left_before_its_turn_never_runs(
    one_thread: ThreadPoolExecutor,
) -> None:
    first, second, third = Counting(), Counting(), Counting(fails_at=1)
    one = from_blocking(first.numbers, executor=one_thread)
    assert await take(one, 1) == [0]
    two = asyncio.ensure_future(anext(from_blocking(second.numbers, executor=one_thread)))
    three = asyncio.ensure_future(anext(from_blocking(third.numbers, executor=one_thread)))
    await asyncio.sleep(0)
    two.cancel()
    with pytest.raises(asyncio.CancelledError):
        await two
    await one.aclose()
    assert await three == 0
    assert second.made == 0


async def test_work_that_pushes_is_a_stream() -> None:
    def work(push: Callable[[int], None]) -> None:
        for number in range(1000):
            push(number)

    assert [n async for n in from_pushing(work)] == list(range(1000))


async def test_pushing_to_nobody_ends_the_work_though_it_catches_exceptions() -> None:
    ended = threading.Event()

    def stubborn(push: Callable[[int], None]) -> None:
        try:
            while True:
                try:
                    push(1)
                except Exception:
                    raise AssertionError from None
        finally:
            ended.set()

    async with aclosing(from_pushing(stubborn)) as items:
        await anext(items)
    assert ended.is_set()


async def test_what_fails_when_its_reader_has_gone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def clumsy() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise LookupError("while closing")

    async with aclosing(from_blocking(clumsy)) as items:
        await anext(items)
    assert "while closing" in caplog.text


def test_a_stream_that_may_not_run_ahead_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="ahead: 0 is not 1 or more"):
        from_blocking([1], ahead=0)


def test_one_program_may_use_several_event_loops() -> None:
    async def read() -> list[int]:
        return [n async for n in from_blocking(range(10))]

    assert [asyncio.run(read()) for _ in range(3)] == [list(range(10))] * 3


class PieceStreamer(BaseStreamer):  # type: ignore[misc]  # transformers has no types for it
    """As transformers' own, without a tokenizer."""

    def __init__(self, push: Callable[[int], None]) -> None:
        self.push = push
        self.put_so_far = 0

    def put(self, value: torch.Tensor) -> None:
        if self.put_so_far:  # the prompt comes first
            self.push(int(value))
        self.put_so_far += 1

    def end(self) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, eos_token_id=None, pad_token_id=0, **sizes))


async def test_a_model_that_calls_a_streamer_becomes_a_stream_and_stops_at_the_next_token(
    model: LlamaForCausalLM,
) -> None:
    prompt = torch.tensor([[1, 2, 3]])
    streamers: list[PieceStreamer] = []

    def work(push: Callable[[int], None]) -> None:
        streamers.append(PieceStreamer(push))
        model.generate(prompt, max_new_tokens=30, do_sample=False, streamer=streamers[-1])

    tokens = [token async for token in from_pushing(work)]
    assert tokens == model.generate(prompt, max_new_tokens=30, do_sample=False)[0, 3:].tolist()
    async with aclosing(from_pushing(work, ahead=2)) as left:
        assert await take(left, 3) == tokens[:3]
    assert streamers[-1].put_so_far <= 1 + 3 + 2


async def test_a_model_thread_computes_for_one_call_at_a_time_in_their_order() -> None:
    thread, begun = ModelThread(), list[tuple[int, str]]()

    def double(number: int, *, plus: int) -> int:
        begun.append((number, threading.current_thread().name))
        return 2 * number + plus

    assert await asyncio.gather(*(thread.run(double, n, plus=1) for n in range(5))) == [1, 3, 5, 7, 9]
    assert [number for number, _ in begun] == list(range(5))
    assert {name for _, name in begun} == {"model_0"}


async def test_work_in_a_model_thread_sees_its_caller_and_raises_to_it() -> None:
    thread = ModelThread()
    WHO.set("the caller")
    assert await thread.run(WHO.get) == "the caller"
    with pytest.raises(LookupError, match="gone"):
        await thread.run(raises, LookupError("gone"))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await thread.run(raises, StopIteration())


async def test_who_gives_up_before_the_turn_leaves_no_work() -> None:
    thread, begun, go, done = ModelThread(), threading.Event(), threading.Event(), list[str]()

    def hold() -> None:
        begun.set()
        go.wait(10)

    first = asyncio.create_task(thread.run(hold))
    await asyncio.to_thread(begun.wait, 10)
    second = asyncio.create_task(thread.run(done.append, "second"))
    third = asyncio.create_task(thread.run(done.append, "third"))
    await asyncio.sleep(0)  # both wait for their turn
    second.cancel()
    await asyncio.wait([second])
    go.set()
    await asyncio.gather(first, third)
    assert done == ["third"]


async def test_a_stream_may_run_in_a_model_thread() -> None:
    counting = Counting()
    async with aclosing(from_blocking(counting.numbers, executor=ModelThread())) as numbers:
        assert await take(numbers, 3) == [0, 1, 2]
    assert counting.threads == {"model_0"}


async def test_a_model_thread_ends_with_who_holds_it() -> None:
    thread = ModelThread()
    running = await thread.run(threading.current_thread)
    del thread
    gc.collect()
    await asyncio.to_thread(running.join, 10)
    assert not running.is_alive()


def raises(error: Exception) -> None:
    raise error
