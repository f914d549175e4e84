"""The scoring service without batches: what batches are measured against."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from services.scoring.model import EmbeddingModel
from services.scoring.v1.scoring_toolkit import ScoringBase, Similarity, TextPair
from toolkit.batching import BatchContext, batched
from toolkit.context import Context

PHRASES = (
    "red bicycle",
    "cheap flights",
    "train to Rome",
    "sunny weather",
    "a grey cat",
    "broken lamp",
    "football stadium",
    "old lighthouse",
    "fresh bread",
    "rain tomorrow",
    "late train",
    "blue kitchen",
)


def pair(number: int) -> TextPair:
    """Two phrases as short as those that people search for: the longer a text, the less a batch can bring."""
    return TextPair(a=PHRASES[number % len(PHRASES)], b=PHRASES[(number * 5 + 1) % len(PHRASES)])


class OneByOne(ScoringBase):
    """One model, one pair at a time, in a thread of its own."""

    def __init__(self, *, model: str = "minilm-l6", device: str = "cpu") -> None:
        self._model: EmbeddingModel | Nothing = EmbeddingModel(model, device)
        self._worker = ThreadPoolExecutor(1)

    async def score(self, request: TextPair, context: Context) -> Similarity:
        run = asyncio.get_running_loop().run_in_executor
        return Similarity(value=await run(self._worker, self._model.similarity, request.a, request.b))


class Nothing:
    """A model that knows at once."""

    def similarity(self, a: str, b: str) -> float:
        return 0.0


class NothingOneByOne(OneByOne):
    def __init__(self) -> None:
        self._model = Nothing()
        self._worker = ThreadPoolExecutor(1)


class NothingInBatches(ScoringBase):
    @batched()
    def score(self, requests: list[TextPair], context: BatchContext) -> list[Similarity]:
        return [Similarity(value=0.0) for _ in requests]
