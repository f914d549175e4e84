"""The text generation service with its real model, and the parts that need none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.text_generation.model import CausalModel, IncrementalText
from services.text_generation.sampling import sample
from services.text_generation.service import TextGeneration
from services.text_generation.v1.text_generation_toolkit import (
    FinishReason,
    GenerateRequest,
    TextGenerationClient,
)
from toolkit.errors import Code, ServiceError, StartError
from toolkit.testing import serve

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def service() -> TextGeneration:
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other are slower than one
    return TextGeneration(model="smollm2-135m", max_new_tokens=64)


@pytest.fixture
async def generator(service: TextGeneration) -> AsyncIterator[TextGenerationClient]:
    async with serve(service, TextGenerationClient) as client:
        yield client


class Forwards:
    """Stands in the way of the model's steps: tells how many texts each one reads, and lets a test hold the next one."""

    def __init__(self, service: TextGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        """Tokens that went into each step: one for each text, but for the prompts."""
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.loop = asyncio.get_running_loop()
        self.entered = asyncio.Event()
        self._real = service._model._model.forward
        monkeypatch.setattr(service._model._model, "forward", self._forward)

    def _forward(self, **inputs: Any) -> Any:
        self.sizes.append(inputs["input_ids"].shape[-1])
        self.threads.add(threading.get_ident())
        self.loop.call_soon_threadsafe(self.entered.set)
        assert self.gate.wait(30), "the event loop never opened the gate: is it blocked by the model?"
        return self._real(**inputs)


@pytest.fixture
async def forwards(
    service: TextGeneration, generator: TextGenerationClient, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Forwards]:
    found = Forwards(service, monkeypatch)
    yield found
    found.gate.set()


async def test_generate_continues_the_prompt_in_english(generator: TextGenerationClient) -> None:
    reply = await generator.generate(GenerateRequest(prompt=PROMPT, max_new_tokens=8))
    assert "Paris" in reply.text
    assert (reply.tokens, reply.finish_reason) == (8, FinishReason.LENGTH)


async def test_a_text_that_the_model_ends_itself_is_marked_so(generator: TextGenerationClient) -> None:
    chat = "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    reply = await generator.generate(GenerateRequest(prompt=chat, max_new_tokens=64))
    assert reply.finish_reason is FinishReason.END_OF_TEXT
    assert reply.tokens < 64
    assert "<|im_end|>" not in reply.text


async def test_a_chat_is_put_into_the_models_own_form(generator: TextGenerationClient) -> None:
    form = "<|im_start|>{}\n{}<|im_end|>\n"
    system = form.format("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    whole = system + form.format("user", "What is 2+2?") + "<|im_start|>assistant\n"
    by_hand = await generator.generate(GenerateRequest(prompt=whole, max_new_tokens=8, seed=0))
    chat = GenerateRequest(prompt="What is 2+2?", max_new_tokens=8, seed=0, chat=True)
    assert await generator.generate(chat) == by_hand


async def test_stream_gives_the_text_of_generate_token_by_token(generator: TextGenerationClient) -> None:
    request = GenerateRequest(prompt=PROMPT, max_new_tokens=12)
    tokens = [token async for token in generator.stream(request)]
    assert "".join(token.text for token in tokens) == (await generator.generate(request)).text
    assert [token.finish_reason for token in tokens] == [FinishReason.FINISH_REASON_UNSPECIFIED] * 11 + [
        FinishReason.LENGTH
    ]


async def test_a_character_of_several_tokens_comes_whole(generator: TextGenerationClient) -> None:
    pieces = [t.text async for t in generator.stream(GenerateRequest(prompt="🎉 🎊 🥳 🎁 🎈", max_new_tokens=12))]
    assert "" in pieces, "no token of this text ended inside a character: the prompt no longer shows what it should"
    assert "".join(pieces).strip()
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces[:-1])


async def test_the_same_seed_gives_the_same_text(generator: TextGenerationClient) -> None:
    request = GenerateRequest(prompt=PROMPT, max_new_tokens=8, temperature=1.5, seed=7)
    first, again = await generator.generate(request), await generator.generate(request)
    other = await generator.generate(GenerateRequest(prompt=PROMPT, max_new_tokens=8, temperature=1.5, seed=8))
    assert first == again
    assert first.text != other.text


async def test_a_drawn_seed_is_told_and_can_be_used_again(generator: TextGenerationClient) -> None:
    request = GenerateRequest(prompt=PROMPT, max_new_tokens=8, temperature=1.5)
    drawn = await generator.generate(request)
    again = GenerateRequest(prompt=PROMPT, max_new_tokens=8, temperature=1.5, seed=drawn.seed)
    assert await generator.generate(again) == drawn
    assert (await generator.generate(request)).seed != drawn.seed


TOGETHER = [
    GenerateRequest(prompt=prompt, max_new_tokens=tokens, temperature=temperature, seed=3)
    for prompt, tokens, temperature in (
        (PROMPT, 8, 0.0),
        ("The storm took the bridge, so we", 5, 0.0),
        ("One two three. " * 20, 6, 0.0),
        (PROMPT, 8, 1.5),
        ("Once upon a time", 3, 1.5),
    )
]


async def test_texts_made_together_are_those_made_one_by_one(generator: TextGenerationClient) -> None:
    together = await asyncio.gather(*(generator.generate(request) for request in TOGETHER))
    assert together == [await generator.generate(request) for request in TOGETHER]


async def test_one_step_of_the_model_serves_all_callers(generator: TextGenerationClient, forwards: Forwards) -> None:
    forwards.gate.clear()  # so that all of them are there at the second step
    calls = [asyncio.create_task(generator.generate(request)) for request in TOGETHER]
    await forwards.entered.wait()
    forwards.gate.set()
    replies = await asyncio.gather(*calls)
    assert len(forwards.sizes) < 20 < sum(reply.tokens for reply in replies)


async def test_the_event_loop_stays_free_while_the_model_works(
    generator: TextGenerationClient, forwards: Forwards
) -> None:
    forwards.gate.clear()
    call = asyncio.create_task(generator.generate(GenerateRequest(prompt=PROMPT, max_new_tokens=2)))
    await forwards.entered.wait()
    forwards.gate.set()  # a blocked loop would never come here
    await call
    assert len(forwards.threads) == 1
    assert threading.get_ident() not in forwards.threads


async def test_cancelling_generate_stops_the_text_at_the_next_token(
    generator: TextGenerationClient, forwards: Forwards
) -> None:
    forwards.gate.clear()
    call = asyncio.create_task(generator.generate(GenerateRequest(prompt=PROMPT, max_new_tokens=64)))
    await forwards.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    forwards.gate.set()
    await takes_its_place(generator, forwards)


async def test_leaving_a_stream_stops_the_text_at_the_next_token(
    generator: TextGenerationClient, forwards: Forwards
) -> None:
    async with generator.stream(GenerateRequest(prompt=PROMPT, max_new_tokens=64)) as tokens:
        await anext(tokens)
    await takes_its_place(generator, forwards)


async def takes_its_place(generator: TextGenerationClient, forwards: Forwards) -> None:
    """A text that comes now has the model for itself: the one before it takes part in no step more than it had begun."""
    await generator.generate(GenerateRequest(prompt=PROMPT, max_new_tokens=8))
    assert forwards.sizes[-7:] == [1] * 7
    assert len(forwards.sizes) < 30


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (GenerateRequest(prompt=""), "prompt: empty"),
        (GenerateRequest(prompt=PROMPT, max_new_tokens=-1), "max_new_tokens: -1"),
        (GenerateRequest(prompt=PROMPT, max_new_tokens=65), "max_new_tokens: 65 is not in 0 to 64"),
        (GenerateRequest(prompt=PROMPT, temperature=-0.5), "temperature: -0.5"),
        (GenerateRequest(prompt=PROMPT, temperature=float("nan")), "temperature: nan"),
        (GenerateRequest(prompt=PROMPT, temperature=float("inf")), "temperature: inf"),
        (GenerateRequest(prompt="a b " * 4200, max_new_tokens=8), "tokens and 8 new tokens do not fit"),
        (GenerateRequest(prompt="a" * 1_000_000, max_new_tokens=8), "1000000 characters and 8 new tokens do not fit"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_wrong_request_is_refused_with_its_fault(
    generator: TextGenerationClient, request_: GenerateRequest, fault: str
) -> None:
    with pytest.raises(ServiceError, match=fault) as refused:
        await generator.generate(request_)
    assert refused.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(ServiceError, match=fault):
        await anext(generator.stream(request_))


@pytest.mark.parametrize(
    "args", [{"temperature": 3}, {"temperature": "hot"}, {"top_p": 0}, {"max_new_tokens": 0}, {"max_new_tokens": 2.5}]
)
def test_wrong_args_stop_the_start(args: dict[str, Any]) -> None:
    with pytest.raises(StartError, match="args: temperature must be a number in 0 to 2"):
        TextGeneration(**args)


@pytest.mark.parametrize(("name", "value"), [("max_batch", 0), ("max_batch", "many"), ("cache_tokens", 2.5)])
def test_wrong_sizes_stop_the_start(name: str, value: Any) -> None:
    with pytest.raises(StartError, match=f"args: {name} must be a whole number from 1; found {value!r}"):
        TextGeneration(**{name: value})


async def test_a_text_fits_into_the_memory_for_all_of_them() -> None:
    service = TextGeneration(cache_tokens=128, max_new_tokens=64)
    async with serve(service, TextGenerationClient) as generator:
        with pytest.raises(ServiceError, match="64 new tokens do not fit into `cache_tokens`, 128 tokens"):
            await generator.generate(GenerateRequest(prompt="a b " * 50, max_new_tokens=64))


def test_a_device_that_is_not_here_stops_the_start() -> None:
    with pytest.raises(StartError, match="device 'cuda:99' cannot be used"):
        CausalModel("smollm2-135m", "cuda:99")


def test_a_model_without_a_language_head_stops_the_start() -> None:
    with pytest.raises(StartError, match="'minilm-l6' cannot serve here: it has no weights for cls"):
        CausalModel("minilm-l6")


def as_bytes(ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode(errors="replace")


def as_words(ids: Sequence[int]) -> str:
    """A tokenizer that writes a space before each word but drops the first, as sentencepiece does."""
    return "".join(f" w{id_}" for id_ in ids)[1:]


def pieces_of(decode: Callable[[Sequence[int]], str], prompt: Sequence[int], ids: Sequence[int]) -> list[str]:
    text = IncrementalText(decode, prompt)
    return [text.add(id_) for id_ in ids] + [text.flush()]


@given(prompt=st.text(), text=st.text())
def test_pieces_are_whole_characters_and_make_the_text(prompt: str, text: str) -> None:
    pieces = pieces_of(as_bytes, prompt.encode(), text.encode())
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@given(st.binary())
def test_bytes_that_are_no_text_come_out_as_in_the_whole(data: bytes) -> None:
    assert "".join(pieces_of(as_bytes, b"", data)) == as_bytes(data)


def test_the_space_after_the_prompt_is_kept() -> None:
    assert pieces_of(as_words, [1, 2], [3, 4]) == [" w3", " w4", ""]


def test_only_the_likeliest_tokens_are_drawn() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    random = torch.Generator().manual_seed(0)
    drawn = {sample(scores, temperature=1.0, top_p=0.75, random=random) for _ in range(200)}
    assert drawn == {0, 1}
