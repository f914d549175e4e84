"""The reviewer: reads tokens while they are written, and compares each sentence with those before it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import numpy as np

from services.embedding.v1.embedding_toolkit import EmbeddingClient, Text
from services.relay.sentences import Sentences
from services.relay.v1.relay_toolkit import ReviewerBase, Sentence, Verdict
from services.text_generation.v1.text_generation_toolkit import Token
from toolkit.context import Context
from toolkit.service import depends

REMEMBERED: Final = 256
"""Sentences that a new one is compared with, the latest."""


class Reviewer(ReviewerBase):
    """Holds no model: it asks an embedding model what a sentence means."""

    embedding = depends(EmbeddingClient)

    def __init__(self, *, repeated_from: float = 0.8) -> None:
        """A sentence at least so similar to one before it repeats it."""
        self._repeated_from = repeated_from

    async def refine(self, requests: AsyncIterator[Token], context: Context) -> AsyncIterator[Sentence]:
        sentences = Sentences()
        before: deque[np.ndarray] = deque(maxlen=REMEMBERED)
        tokens = 0
        async for token in requests:
            tokens += 1
            for text in sentences.add(token.text):
                yield await self._reviewed(text, before, tokens)
        for text in sentences.rest():
            yield await self._reviewed(text, before, tokens)

    async def _reviewed(self, text: str, before: deque[np.ndarray], tokens: int) -> Sentence:
        similarity = await self._similarity(text, before) if text.strip() else 0.0
        verdict = Verdict.REPEATED if similarity >= self._repeated_from else Verdict.NEW
        return Sentence(text=text, verdict=verdict, similarity=similarity, tokens=tokens)

    async def _similarity(self, text: str, before: deque[np.ndarray]) -> float:
        """To the most similar one before it; this one is remembered too."""
        reply = await self.embedding.embed(Text(text=text))
        meaning = np.asarray(reply.values)
        closest = max((float(each @ meaning) for each in before), default=0.0)
        before.append(meaning)
        return closest
