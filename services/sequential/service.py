"""A sequence: one service prepares what the next computes on. Between them travels a tensor, not a list of numbers."""

from __future__ import annotations

import asyncio
import re
from typing import Final

import torch

from services.models import known_device
from services.scoring.model import EmbeddingModel, TextTooLongError
from services.sequential.v1.sequential_toolkit import (
    Document,
    PreparationBase,
    PreparationClient,
    Prepared,
    Ranked,
    SummaryBase,
    SummaryReply,
    SummaryRequest,
)
from toolkit.blocking import ModelThread
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends
from toolkit.tensor import Tensor

MAX_TEXT: Final = 100_000
"""Characters."""
MAX_SENTENCES: Final = 512
DAMPING: Final = 0.85
SWEEPS: Final = 50
_SENTENCE: Final = re.compile(r"\S.*?(?:[.!?]+(?=\s)|\n\s*\n|\Z)", re.DOTALL)


class Preparation(PreparationBase):
    """Small work on many texts: it runs on cores. The same text, asked for by several at once, is prepared once."""

    def __init__(self, *, model: str = "minilm-l6", device: str = "cpu") -> None:
        self._model = EmbeddingModel(model, device)
        self._thread = ModelThread()
        self._under_way: dict[str, asyncio.Task[Prepared]] = {}
        self._passes = 0

    async def prepare(self, request: Document, context: Context) -> Prepared:
        found = self._under_way.get(request.text)
        if found is None:
            found = self._under_way[request.text] = asyncio.create_task(self._prepared(request.text))
            found.add_done_callback(lambda _: self._under_way.pop(request.text))
        return await asyncio.shield(found)  # a caller that gives up leaves the others their answer

    async def _prepared(self, text: str) -> Prepared:
        sentences = split(text)
        try:
            vectors = await self._thread.run(self._model.embeddings, sentences)
        except TextTooLongError as error:
            raise ServiceError(Code.INVALID_ARGUMENT, str(error)) from None
        self._passes += 1
        return Prepared(sentences=sentences, vectors=Tensor.of(vectors), passes=self._passes)


class Summary(SummaryBase):
    """Larger work on few numbers: it may have a device of its own."""

    preparation = depends(PreparationClient)

    def __init__(self, *, device: str = "cpu") -> None:
        self._device = known_device(device)

    async def summarise(self, request: SummaryRequest, context: Context) -> SummaryReply:
        if request.sentences < 0:
            raise ServiceError(Code.INVALID_ARGUMENT, f"sentences: {request.sentences} is less than 0")
        prepared = await self.preparation.prepare(Document(text=request.text))
        scores = await asyncio.to_thread(self._scores, prepared)
        best = sorted(range(len(scores)), key=lambda place: -scores[place])[: request.sentences or 2]
        return SummaryReply(
            sentences=[Ranked(text=prepared.sentences[i], position=i, score=scores[i]) for i in sorted(best)]
        )

    def _scores(self, prepared: Prepared) -> list[float]:
        """Source: Erkan and Radev, LexRank, 2004: who is similar to those who are similar to many stands for many."""
        assert prepared.vectors is not None
        vectors = prepared.vectors.torch(self._device)
        links = (vectors @ vectors.T).clamp(min=0)
        links = links / links.sum(dim=1, keepdim=True)
        scores = torch.full((len(links),), 1 / len(links), device=self._device)
        for _ in range(SWEEPS):
            scores = (1 - DAMPING) / len(links) + DAMPING * (scores @ links)
        return [float(score) for score in scores]


def split(text: str) -> list[str]:
    """The sentences of a text. Raises ServiceError where it has none, or too many."""
    if len(text) > MAX_TEXT:
        raise ServiceError(Code.INVALID_ARGUMENT, f"text: {len(text)} characters; at most {MAX_TEXT}")
    found = [sentence for each in _SENTENCE.findall(text) if (sentence := " ".join(each.split()))]
    if not found:
        raise ServiceError(Code.INVALID_ARGUMENT, "text: empty; give some sentences")
    if len(found) > MAX_SENTENCES:
        raise ServiceError(Code.INVALID_ARGUMENT, f"text: {len(found)} sentences; at most {MAX_SENTENCES}")
    return found
