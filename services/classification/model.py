"""Two ways to choose a label for a text without training. They know nothing of calls; every method blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

import torch
from transformers import AutoModelForCausalLM

from services.models import CHARACTERS_A_TOKEN, load
from services.scoring.model import EmbeddingModel, TextTooLongError

SHARPNESS: Final = 15.0
"""What cosines are multiplied by before they become shares: embeddings of different things are seldom far apart."""
NOTHING: Final = "N/A"
"""A text that says nothing, for how likely a label is whatever the text."""


class Classifier(Protocol):
    def shares(self, text: str, labels: Sequence[str]) -> list[float]:
        """One a label, together 1. Raises TextTooLongError."""
        ...


class MeaningClassifier:
    """By an embedding model: the label whose meaning is closest to that of the text."""

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._model = EmbeddingModel(model, device)

    def shares(self, text: str, labels: Sequence[str]) -> list[float]:
        vectors = self._model.embeddings([text, *(f"This text is about {label}." for label in labels)])
        return _shares(SHARPNESS * (vectors[1:] @ vectors[0]))


class LikelihoodClassifier:
    """By a language model: the label that the text makes likelier than it is anyway.

    Source of the correction: Holtzman et al., Surface Form Competition, 2021.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        self._tokenizer, self._model = load(AutoModelForCausalLM, model, device)
        self._limit = int(self._model.config.max_position_embeddings)
        self._pad = self._tokenizer.eos_token_id
        self._usual = lru_cache(64)(self._usual_likelihoods)
        self.shares("Hello", ("greeting", "number"))  # the first pass is slow: not for a caller to wait

    def shares(self, text: str, labels: Sequence[str]) -> list[float]:
        return _shares(self._likelihoods(text, labels) - self._usual(tuple(labels)))

    def _usual_likelihoods(self, labels: tuple[str, ...]) -> torch.Tensor:
        return self._likelihoods(NOTHING, labels)

    def _likelihoods(self, text: str, labels: Sequence[str]) -> torch.Tensor:
        """The logarithm of each label's probability behind the text, in one pass of the model."""
        prompt = self._ids(f"Text: {text}\nThe text is about")
        endings = [self._ids(f" {label}") for label in labels]
        longest = max(map(len, endings))
        if len(prompt) + longest > self._limit:
            raise TextTooLongError(f"a text of {len(prompt)} tokens; the model reads {self._limit - longest}")
        rows = [[*prompt, *ending, *[self._pad] * (longest - len(ending))] for ending in endings]
        with torch.inference_mode():
            logits = self._model(torch.tensor(rows, device=self._model.device)).logits
            chances = torch.log_softmax(logits[:, len(prompt) - 1 : -1].float(), dim=-1).cpu()
        return torch.stack([row[range(len(ids)), ids].sum() for row, ids in zip(chances, endings, strict=True)])

    def _ids(self, text: str) -> Any:
        if len(text) > self._limit * CHARACTERS_A_TOKEN:
            raise TextTooLongError(f"a text of {len(text)} characters; the model reads {self._limit} tokens")
        return self._tokenizer(text, verbose=False)["input_ids"]


def _shares(logits: torch.Tensor) -> list[float]:
    return [float(share) for share in torch.softmax(logits, dim=0)]
