"""One causal language model: text in, tokens out. Knows nothing of calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from transformers import AutoModelForCausalLM

from services.models import CHARACTERS_A_TOKEN, load
from services.text_generation.engine import Engine
from services.text_generation.sampling import Sampling
from toolkit.service import progress

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class PromptError(ValueError):
    """The prompt has no tokens, or so many that the new ones do not fit into the model's context."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one token adds to the text."""

    text: str
    is_end_of_text: bool = False
    is_last: bool = False


class CausalModel:
    """The weights and the tokenizer, for several texts at once as long as it is entered."""

    def __init__(self, model: str, device: str = "cpu", *, max_batch: int = 16, cache_tokens: int = 16384) -> None:
        self._tokenizer, self._model = load(AutoModelForCausalLM, model, device)
        self._context = int(self._model.config.max_position_embeddings)
        self._cache_tokens = cache_tokens
        self._ends = _ends(self._model.generation_config.eos_token_id, self._tokenizer.eos_token_id)
        self._engine = Engine(self._model, self._ends, max_batch=max_batch, cache_tokens=cache_tokens)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as until_ready:
            await until_ready.enter_async_context(self._engine)
            progress("warm up")
            async for _ in self._engine.tokens(self.encode("Hello", 1), Sampling(max_new_tokens=1)):
                pass  # the first pass is slow: not for a caller to wait
            until_ready.pop_all()  # `__aexit__` stops it
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.__aexit__(kind, error, trace)

    def encode(self, prompt: str, max_new_tokens: int, *, chat: bool = False) -> list[int]:
        """The prompt's tokens, at least one; with `chat` as what a user says in a conversation. Blocks.

        Raises PromptError, also when there is no room for so many new ones.
        """
        room = min(self._context, self._cache_tokens) - max_new_tokens
        if len(prompt) > room * CHARACTERS_A_TOKEN:
            raise PromptError(f"a prompt of {len(prompt)} characters {self._excess(max_new_tokens)}")
        ids: list[int] = self._as_chat(prompt) if chat else self._tokenizer(prompt, verbose=False)["input_ids"]
        if not ids:
            raise PromptError("the prompt has no tokens")
        if len(ids) > room:
            raise PromptError(f"a prompt of {len(ids)} tokens {self._excess(max_new_tokens)}")
        return ids

    async def steps(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Step, None]:
        """Continue the prompt, one token a step. The same arguments give the same steps. To stop, close it."""
        text = IncrementalText(self._decode, prompt)
        count = 0
        async with aclosing(self._engine.tokens(prompt, sampling)) as tokens:
            async for token in tokens:
                count += 1
                if token in self._ends:
                    yield Step(text.flush(), is_end_of_text=True, is_last=True)
                else:
                    is_last = count == sampling.max_new_tokens
                    yield Step(text.add(token) + (text.flush() if is_last else ""), is_last=is_last)

    def _as_chat(self, prompt: str) -> list[int]:
        if not self._tokenizer.chat_template:
            raise PromptError("chat: this model was trained on no form of conversation; leave it out")
        said = [{"role": "user", "content": prompt}]
        ids: list[int] = self._tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _excess(self, max_new_tokens: int) -> str:
        limit = (
            f"the model's context of {self._context}"
            if self._context <= self._cache_tokens
            else f"`cache_tokens`, {self._cache_tokens}"
        )
        return f"and {max_new_tokens} new tokens do not fit into {limit} tokens"


class IncrementalText:
    """Tokens to text, piece by piece, never half a character: what `add` and the last `flush` return is the whole text.

    A token is decoded together with those before it, back to a place where the text was whole, because what a token
    means may depend on its neighbours: bytes of one character, spaces between words.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-8:])
        self._said = len(self._ids)
        """So many of the ids are in the text that was returned."""

    def add(self, token: int) -> str:
        """The text that is whole now and was not before."""
        self._ids.append(token)
        text = self._unsaid()
        return "" if text.endswith(REPLACEMENT) else self._say(text)

    def flush(self) -> str:
        """The rest, when no more tokens come; bytes that never became a character are U+FFFD, as in the whole text."""
        return self._say(self._unsaid())

    def _unsaid(self) -> str:
        return self._decode(self._ids)[len(self._decode(self._ids[: self._said])) :]

    def _say(self, text: str) -> str:
        self._ids = self._ids[self._said :] or self._ids
        self._said = len(self._ids)
        return text


def _ends(*found: int | list[int] | None) -> frozenset[int]:
    """Configurations name one token, several or none."""
    return frozenset(id_ for each in found if each is not None for id_ in ([each] if isinstance(each, int) else each))
