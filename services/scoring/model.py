"""One embedding model: texts in, their similarity out. Knows nothing of calls; every method blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from transformers import AutoModel

from services.models import CHARACTERS_A_TOKEN, load


class TextTooLongError(ValueError):
    """A text has more tokens than the model reads."""


Read = list[int] | TextTooLongError
"""A text's tokens, or why it has too many."""


class EmbeddingModel:
    """An encoder whose token vectors, averaged, are the text's embedding. Use it from one thread at a time."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._tokenizer, self._model = load(AutoModel, model, device)
        self._limit = min(int(self._tokenizer.model_max_length), int(self._model.config.max_position_embeddings))
        self.similarity("Hello", "Hello")  # the first pass is slow: not for a caller to wait

    def similarity(self, a: str, b: str) -> float:
        """The cosine of the two embeddings, -1 to 1. Raises TextTooLongError rather than read only a part."""
        (found,) = self.similarities([(a, b)])
        if isinstance(found, TextTooLongError):
            raise found
        return found

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float | TextTooLongError]:
        """The similarity of each pair; an error in the place of one that holds too long a text."""
        texts = self._read([text for pair in pairs for text in pair])
        faults = [_first_fault(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]
        good = [ids for place, ids in enumerate(texts) if not faults[place // 2] and isinstance(ids, list)]
        values = iter(self._compare(good))
        return [fault or next(values) for fault in faults]

    def embeddings(self, texts: list[str]) -> torch.Tensor:
        """Vectors of length 1, one a row, on the CPU. Raises TextTooLongError."""
        read = self._read(texts)
        fault = _first_fault(read)
        if fault is not None:
            raise fault
        return self._embed([ids for ids in read if isinstance(ids, list)])

    def _compare(self, texts: list[list[int]]) -> list[float]:
        """The similarity of the first with the second text, of the third with the fourth, and so on."""
        if not texts:
            return []
        vectors = self._embed(texts)
        cosines = (vectors[::2] * vectors[1::2]).sum(dim=1)
        return cosines.clamp(-1.0, 1.0).tolist()  # type: ignore[no-any-return]  # torch; rounding may step outside

    def _embed(self, texts: list[list[int]]) -> torch.Tensor:
        with torch.inference_mode():
            ids, mask = (each.to(self._model.device) for each in _padded(texts, self._tokenizer.pad_token_id))
            vectors = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = mask.unsqueeze(-1).to(vectors.dtype)  # padding is no part of the text
            mean = (vectors * weights).sum(dim=1) / weights.sum(dim=1)
            return torch.nn.functional.normalize(mean, dim=-1).cpu()

    def _read(self, texts: list[str]) -> list[Read]:
        """The tokens of each text, or why it has too many."""
        longest = self._limit * CHARACTERS_A_TOKEN
        short = [text if len(text) <= longest else "" for text in texts]
        tokens = self._tokenizer(short, verbose=False)["input_ids"]
        return [self._checked(text, ids, longest) for text, ids in zip(texts, tokens, strict=True)]

    def _checked(self, text: str, ids: list[int], longest: int) -> Read:
        if len(text) > longest:
            return TextTooLongError(f"a text of {len(text)} characters; the model reads {self._limit} tokens")
        if len(ids) > self._limit:
            return TextTooLongError(f"a text of {len(ids)} tokens; the model reads {self._limit}")
        return ids


def _first_fault(texts: Iterable[Read]) -> TextTooLongError | None:
    return next((each for each in texts if isinstance(each, TextTooLongError)), None)


def _padded(texts: Sequence[list[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens as one matrix, a row a text, and which of them are real."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [filler] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return ids, mask
