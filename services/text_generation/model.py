"""One causal language model: text in, tokens out. Knows nothing of calls; every method blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from services.models import CHARACTERS_A_TOKEN, load

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PROMPT_CHUNK = 256
"""Tokens of the prompt that the model reads in one step."""


class PromptError(ValueError):
    """The prompt has no tokens, or so many that the new ones do not fit into the model's context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen, and how many there may be."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together are this probable have a chance."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What one token adds to the text."""

    text: str
    is_end_of_text: bool = False
    is_last: bool = False


class CausalModel:
    """The weights and the tokenizer. Use it from one thread at a time; several texts may take turns, step by step."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._tokenizer, self._model = load(AutoModelForCausalLM, model, device)
        self._device = self._model.device
        self._context = int(self._model.config.max_position_embeddings)
        self._ends = _ends(self._model.generation_config.eos_token_id, self._tokenizer.eos_token_id)
        self._forward(self.encode("Hello", 0), None)  # the first pass is slow: not for a caller to wait

    def encode(self, prompt: str, max_new_tokens: int) -> list[int]:
        """The prompt's tokens, at least one. Raises PromptError, also when the context has no room for so many new ones."""
        room = self._context - max_new_tokens
        if len(prompt) > room * CHARACTERS_A_TOKEN:
            raise PromptError(f"a prompt of {len(prompt)} characters {self._excess(max_new_tokens)}")
        ids: list[int] = self._tokenizer(prompt, verbose=False)["input_ids"]
        if not ids:
            raise PromptError("the prompt has no tokens")
        if len(ids) > room:
            raise PromptError(f"a prompt of {len(ids)} tokens {self._excess(max_new_tokens)}")
        return ids

    def steps(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Step | None]:
        """Continue the prompt, one token a step; None while the prompt itself is read, so that no step takes long.

        The same arguments give the same steps. To stop, drop the iterator.
        """
        text = IncrementalText(self._decode, prompt)
        choose = self._chooser(sampling)
        cache = DynamicCache(config=self._model.config)
        new: Sequence[int] = prompt
        while len(new) > PROMPT_CHUNK:
            self._forward(new[:PROMPT_CHUNK], cache)
            new = new[PROMPT_CHUNK:]
            yield None
        for count in range(1, sampling.max_new_tokens + 1):
            token = choose(self._forward(new, cache))
            if token in self._ends:
                yield Step(text.flush(), is_end_of_text=True, is_last=True)
                return
            is_last = count == sampling.max_new_tokens
            yield Step(text.add(token) + (text.flush() if is_last else ""), is_last=is_last)
            new = (token,)

    def _forward(self, new: Sequence[int], cache: Any) -> torch.Tensor:
        """The scores of each possible next token, on the CPU."""
        with torch.inference_mode():
            ids = torch.tensor([list(new)], device=self._device)
            out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits[0, -1].float().cpu()

    def _chooser(self, sampling: Sampling) -> Callable[[torch.Tensor], int]:
        if sampling.temperature == 0:
            return lambda scores: int(scores.argmax())
        random = torch.Generator().manual_seed(sampling.seed)  # its own: other texts draw between our steps
        return lambda scores: sample(scores, sampling.temperature, sampling.top_p, random)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _excess(self, max_new_tokens: int) -> str:
        return f"and {max_new_tokens} new tokens do not fit into the model's context of {self._context} tokens"


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


def sample(scores: torch.Tensor, temperature: float, top_p: float, random: torch.Generator) -> int:
    """Draw a token: likelier ones more often, sharper at a low temperature, none outside of the first `top_p`."""
    likely, ids = torch.softmax(scores / temperature, dim=-1).sort(descending=True)
    likely[likely.cumsum(-1) - likely >= top_p] = 0
    return int(ids[torch.multinomial(likely, 1, generator=random)])


def _ends(*found: int | list[int] | None) -> frozenset[int]:
    """Configurations name one token, several or none."""
    return frozenset(id_ for each in found if each is not None for id_ in ([each] if isinstance(each, int) else each))
