"""One embedding model: texts in, their similarity out. Knows nothing of calls; every method blocks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel

from services.models import CHARACTERS_A_TOKEN, load


class TextTooLongError(ValueError):
    """A text has more tokens than the model reads."""


class EmbeddingModel:
    """An encoder whose token vectors, averaged, are the text's embedding. Use it from one thread at a time."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._tokenizer, self._model = load(AutoModel, model, device)
        self._limit = min(int(self._tokenizer.model_max_length), int(self._model.config.max_position_embeddings))
        self.similarity("Hello", "Hello")  # the first pass is slow: not for a caller to wait

    def similarity(self, a: str, b: str) -> float:
        """The cosine of the two embeddings, -1 to 1. Raises TextTooLongError rather than read only a part."""
        one, other = self.embeddings([a, b])
        return max(-1.0, min(1.0, float(one @ other)))  # rounding may step outside

    def embeddings(self, texts: list[str]) -> torch.Tensor:
        """Vectors of length 1, one a row, on the CPU. Raises TextTooLongError."""
        with torch.inference_mode():
            tokens = self._tokens(texts).to(self._model.device)
            vectors = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1).to(vectors.dtype)  # padding is no part of the text
            mean = (vectors * mask).sum(dim=1) / mask.sum(dim=1)
            return torch.nn.functional.normalize(mean, dim=-1).cpu()

    def _tokens(self, texts: list[str]) -> Any:
        longest = max(len(text) for text in texts)
        if longest > self._limit * CHARACTERS_A_TOKEN:
            raise TextTooLongError(f"a text of {longest} characters; the model reads {self._limit} tokens")
        tokens = self._tokenizer(texts, padding=True, return_tensors="pt", verbose=False)
        length = tokens["input_ids"].shape[1]
        if length > self._limit:
            raise TextTooLongError(f"a text of {length} tokens; the model reads {self._limit}")
        return tokens
