"""A diamond: two branches ask the same service, which is there once.

        digest
       /      \\
  summary    oddity
       \\      /
     preparation
"""

from __future__ import annotations

import asyncio

import numpy as np

from services.diamond.v1.diamond_toolkit import DigestBase, DigestReply, OddityBase, OddityClient
from services.sequential.v1.sequential_toolkit import (
    Document,
    PreparationClient,
    Ranked,
    SummaryClient,
    SummaryRequest,
)
from toolkit.context import Context
from toolkit.service import depends


class Oddity(OddityBase):
    """The other branch is `services.sequential.service:Summary`."""

    preparation = depends(PreparationClient)

    async def find(self, request: Document, context: Context) -> Ranked:
        prepared = await self.preparation.prepare(request)
        assert prepared.vectors is not None
        vectors = prepared.vectors.numpy()
        others = max(len(vectors) - 1, 1)
        distances = 1 - (vectors @ vectors.sum(axis=0) - 1) / others if len(vectors) > 1 else np.zeros(1)
        position = int(distances.argmax())
        return Ranked(text=prepared.sentences[position], position=position, score=float(distances[position]))


class Digest(DigestBase):
    """Both branches at once; what both need is computed once, for the text is the same."""

    summary = depends(SummaryClient)
    oddity = depends(OddityClient)

    async def read(self, request: Document, context: Context) -> DigestReply:
        summary, oddity = await asyncio.gather(
            self.summary.summarise(SummaryRequest(text=request.text)), self.oddity.find(request)
        )
        return DigestReply(summary=summary.sentences, oddity=oddity)
