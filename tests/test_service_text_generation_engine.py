"""The engine of the text generation service, with a model of random weights: what a step serves, and who leaves when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.text_generation.engine import STEP_TOKENS, Engine, ModelFailedError
from services.text_generation.sampling import Sampling

PROMPTS = [[token] for token in range(3, 9)]
"""Of one token each, so that a step reads as many tokens as texts take part in it."""


class Random:
    """A small model that writes nonsense, held at a gate and counted. The same for all tests, as its weights are seeded."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            bos_token_id=1,
            eos_token_id=None,
        )
        self.model = LlamaForCausalLM(config).eval()
        self.steps: list[int] = []
        """The tokens that went into each step."""
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.real = self.model.forward
        self.model.forward = self.forward

    def forward(self, **inputs: Any) -> Any:
        self.steps.append(inputs["input_ids"].shape[-1])
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        return self.real(**inputs)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """What transformers' own generation makes of the prompt."""
        ids = torch.tensor([list(prompt)])
        made = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        return [int(token) for token in made[0, len(prompt) :]]


@pytest.fixture
def random() -> Random:
    return Random()


@pytest.fixture
async def engine(random: Random) -> AsyncIterator[Engine]:
    async with Engine(random.model, (), max_batch=8, cache_tokens=4096) as engine:
        yield engine


async def made(engine: Engine, prompt: Sequence[int], count: int = 16, **sampling: Any) -> list[int]:
    return [token async for token in engine.tokens(prompt, Sampling(max_new_tokens=count, **sampling))]


async def all_made(engine: Engine, count: int = 16, **sampling: Any) -> list[list[int]]:
    return await asyncio.gather(*(made(engine, prompt, count, **sampling) for prompt in PROMPTS))


async def read_into(found: list[int], tokens: AsyncIterator[int]) -> None:
    async for token in tokens:
        found.append(token)  # those before a failure are wanted


async def test_texts_made_together_are_those_of_transformers_own_generation(engine: Engine, random: Random) -> None:
    assert await all_made(engine) == [random.greedy(prompt, 16) for prompt in PROMPTS]


async def test_a_step_serves_all_texts(engine: Engine, random: Random) -> None:
    random.gate.clear()
    texts = [asyncio.create_task(made(engine, prompt)) for prompt in PROMPTS]
    await asyncio.sleep(0)  # each has asked by then
    random.gate.set()
    await asyncio.gather(*texts)
    assert max(random.steps) == len(PROMPTS)
    assert len(random.steps) <= 16 + 2


async def test_no_more_than_max_batch_take_part_in_a_step(random: Random) -> None:
    async with Engine(random.model, (), max_batch=2, cache_tokens=4096) as engine:
        together = await all_made(engine, temperature=1.0, seed=5)
        assert max(random.steps) == 2
        assert together == [await made(engine, prompt, temperature=1.0, seed=5) for prompt in PROMPTS]


async def test_a_long_prompt_is_read_in_pieces_while_others_go_on(engine: Engine, random: Random) -> None:
    prompt = [number % 128 for number in range(1000)]
    long, short = await asyncio.gather(made(engine, prompt, 4), made(engine, [1, 2], 8))
    assert (long, short) == (random.greedy(prompt, 4), random.greedy([1, 2], 8))
    assert max(random.steps[:8]) <= STEP_TOKENS


async def test_texts_that_outgrow_the_memory_together_lose_no_token(random: Random) -> None:
    async with Engine(random.model, (), max_batch=8, cache_tokens=256) as engine:
        assert await all_made(engine, 150) == [random.greedy(prompt, 150) for prompt in PROMPTS]
        drawn = await all_made(engine, 150, temperature=1.0, seed=3)
        assert drawn == [await made(engine, prompt, 150, temperature=1.0, seed=3) for prompt in PROMPTS]


async def test_a_slow_reader_loses_no_token(engine: Engine, random: Random) -> None:
    async with aclosing(engine.tokens([1, 2], Sampling(max_new_tokens=100))) as tokens:
        first = [await anext(tokens)]
        assert await made(engine, [3, 4], 120) == random.greedy([3, 4], 120)  # ends after the text that is not read
        assert first + [token async for token in tokens] == random.greedy([1, 2], 100)


async def test_each_text_draws_from_its_own_seed(engine: Engine) -> None:
    seeds = (1, 2, 1)
    first, other, again = await asyncio.gather(*(made(engine, [1, 2], temperature=1.0, seed=seed) for seed in seeds))
    assert first == again
    assert first != other


async def test_a_text_ends_with_the_token_that_ends_texts(random: Random) -> None:
    whole = random.greedy([5, 2, 3], 16)
    end = next(token for token in whole if token != whole[0])
    async with Engine(random.model, [end], max_batch=8, cache_tokens=4096) as engine:
        assert await made(engine, [5, 2, 3]) == whole[: whole.index(end) + 1]


async def test_a_text_that_is_left_frees_its_place(random: Random) -> None:
    async with Engine(random.model, (), max_batch=1, cache_tokens=4096) as engine:
        async with aclosing(engine.tokens([1, 2], Sampling(max_new_tokens=4000))) as tokens:
            await anext(tokens)
            waiting = asyncio.create_task(made(engine, [3, 4]))
        assert await waiting == random.greedy([3, 4], 16)
        assert len(random.steps) < 2000


async def test_a_text_that_is_left_while_it_waits_never_begins(random: Random) -> None:
    async with Engine(random.model, (), max_batch=1, cache_tokens=4096) as engine:
        random.gate.clear()
        first = asyncio.create_task(made(engine, [1, 2]))
        left = asyncio.create_task(made(engine, list(range(100))))
        await asyncio.sleep(0)
        left.cancel()
        random.gate.set()
        assert await first == random.greedy([1, 2], 16)
        await asyncio.wait([left])
        assert left.cancelled()
    assert 100 not in random.steps[:16]


async def test_a_step_that_fails_ends_its_texts_and_the_next_one_is_served(engine: Engine, random: Random) -> None:
    random.failure = RuntimeError("out of memory")
    for text in await asyncio.gather(made(engine, [1, 2]), made(engine, [1, 2, 3]), return_exceptions=True):
        assert isinstance(text, ModelFailedError)
    random.failure = None
    await asyncio.to_thread(engine._manager._generation_thread.join)
    assert await made(engine, [1, 2]) == random.greedy([1, 2], 16)


async def test_a_failure_comes_after_the_tokens_before_it(engine: Engine, random: Random) -> None:
    async with aclosing(engine.tokens([1, 2], Sampling(max_new_tokens=4000))) as tokens:
        found = [await anext(tokens)]
        random.failure = RuntimeError("out of memory")
        with pytest.raises(ModelFailedError, match="out of memory"):
            await read_into(found, tokens)
    count = len(random.steps) - 1  # a token of each step but the last
    random.failure = None
    assert found == random.greedy([1, 2], count)


async def test_stopping_ends_the_texts_under_way_and_the_thread(random: Random) -> None:
    async with Engine(random.model, (), max_batch=8, cache_tokens=4096) as engine:
        tokens = engine.tokens([1, 2], Sampling(max_new_tokens=4000))
        await anext(tokens)
    with pytest.raises(ModelFailedError):
        assert len([token async for token in tokens]) < 4000
    assert not [thread for thread in threading.enumerate() if "_run_generation_loop" in thread.name]
