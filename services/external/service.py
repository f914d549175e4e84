"""A service that calls one of another owner: where `scoring` runs is the graph file's affair, and no concern of the class."""

from __future__ import annotations

import asyncio
from typing import Final

from services.external.v1.external_toolkit import BestReply, BestRequest, MatcherBase
from services.scoring.v1.scoring_toolkit import ScoringClient, TextPair
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends

MAX_CANDIDATES: Final = 100


class Matcher(MatcherBase):
    scoring = depends(ScoringClient)

    async def best(self, request: BestRequest, context: Context) -> BestReply:
        if not 1 <= len(request.candidates) <= MAX_CANDIDATES:
            given = len(request.candidates)
            raise ServiceError(Code.INVALID_ARGUMENT, f"candidates: {given} given; give 1 to {MAX_CANDIDATES}")
        pairs = [TextPair(a=request.text, b=candidate) for candidate in request.candidates]
        scores = await asyncio.gather(*map(self.scoring.score, pairs))
        score, place = max((found.value, -place) for place, found in enumerate(scores))
        return BestReply(candidate=request.candidates[-place], score=score)
