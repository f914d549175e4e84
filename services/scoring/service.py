"""Scoring as a service: the calls around the model of `model.py`, in batches."""

from __future__ import annotations

from services.models import model_folder
from services.scoring.model import EmbeddingModel, TextTooLongError
from services.scoring.v1.scoring_toolkit import ScoringBase, Similarity, TextPair
from toolkit.batching import BatchContext, batched, size_class
from toolkit.errors import Code, ServiceError


def _size(pair: TextPair) -> int:
    """Pairs of one size share a batch; one that cannot be compared is refused before it waits for one."""
    for name, text in (("a", pair.a), ("b", pair.b)):
        if not text.strip():
            raise ServiceError(Code.INVALID_ARGUMENT, f"{name}: empty; give two texts to compare")
    return max(6, size_class(max(len(pair.a), len(pair.b))))  # up to 64 characters padding costs next to nothing


class Scoring(ScoringBase):
    """One model on one device."""

    @classmethod
    def __fetch__(cls, model: str = "minilm-l6") -> None:
        model_folder(model)

    def __init__(self, *, model: str = "minilm-l6", device: str = "cpu") -> None:
        self._model = EmbeddingModel(model, device)

    @batched(max_size=32, pad_by=_size)
    def score(self, requests: list[TextPair], context: BatchContext) -> list[Similarity | ServiceError]:
        found = self._model.similarities([(pair.a, pair.b) for pair in requests])
        return [_reply(each) for each in found]


def _reply(found: float | TextTooLongError) -> Similarity | ServiceError:
    if isinstance(found, TextTooLongError):
        return ServiceError(Code.INVALID_ARGUMENT, str(found))
    return Similarity(value=found)
