"""The matcher with the real scoring model, which it believes to be anywhere."""

from __future__ import annotations

import pytest

from services.external.service import Matcher
from services.external.v1.external_toolkit import BestRequest, MatcherClient
from services.scoring.service import Scoring
from services.scoring.v1.scoring_toolkit import ScoringClient, Similarity
from toolkit.errors import Code, ServiceError
from toolkit.testing import fake, serve


async def test_the_closest_candidate_is_the_best() -> None:
    candidates = ["Our shops open at nine.", "Refunds are paid within five days.", "We deliver to every country."]
    async with serve(Matcher(), MatcherClient, handles={"scoring": Scoring()}) as matcher:
        best = await matcher.best(BestRequest(text="How do I get my money back?", candidates=candidates))
    assert best.candidate == candidates[1]


async def test_of_equals_the_first_is_the_best() -> None:
    same = fake(ScoringClient, score=Similarity(value=0.5))
    async with serve(Matcher(), MatcherClient, handles={"scoring": same}) as matcher:
        assert (await matcher.best(BestRequest(text="a", candidates=["b", "c", "d"]))).candidate == "b"


@pytest.mark.parametrize("count", [0, 101])
async def test_too_few_or_too_many_candidates_are_refused(count: int) -> None:
    unasked = fake(ScoringClient, score=Similarity())
    async with serve(Matcher(), MatcherClient, handles={"scoring": unasked}) as matcher:
        with pytest.raises(ServiceError, match=f"candidates: {count} given") as refused:
            await matcher.best(BestRequest(text="a", candidates=["b"] * count))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert not unasked.asked["score"]
