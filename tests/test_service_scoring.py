"""The scoring service with its real model."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from services.scoring.service import Scoring
from services.scoring.v1.scoring_toolkit import ScoringClient, TextPair
from toolkit.errors import Code, ServiceError, StartError
from toolkit.testing import serve


@pytest.fixture(scope="module")
def service() -> Scoring:
    return Scoring(model="minilm-l6")


@pytest.fixture
async def scoring(service: Scoring) -> AsyncIterator[ScoringClient]:
    async with serve(service, ScoringClient) as client:
        yield client


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("The weather is lovely today.", "It's so sunny outside!", 0.6660),
        ("The weather is lovely today.", "He drove to the stadium.", 0.1046),
        ("It's so sunny outside!", "He drove to the stadium.", 0.1411),
    ],
)
async def test_similarities_are_those_that_the_model_is_published_with(
    scoring: ScoringClient, a: str, b: str, expected: float
) -> None:
    # https://sbert.net, "Quickstart", computed there with sentence-transformers and the same model
    assert (await scoring.score(TextPair(a=a, b=b))).value == pytest.approx(expected, abs=1e-3)


async def test_a_text_is_like_itself(scoring: ScoringClient) -> None:
    assert (await scoring.score(TextPair(a="A lighthouse.", b="A lighthouse."))).value == pytest.approx(1)


async def test_order_and_length_make_no_difference(scoring: ScoringClient) -> None:
    short, long = "A cat.", "The keeper of the lighthouse climbed the stairs with his cat, as he did every evening."
    one = await scoring.score(TextPair(a=short, b=long))
    other = await scoring.score(TextPair(a=long, b=short))
    assert one.value == pytest.approx(other.value, abs=1e-6)


@pytest.mark.parametrize(
    ("pair", "fault"),
    [
        (TextPair(a="", b="text"), "a: empty"),
        (TextPair(a="text", b=" \n"), "b: empty"),
        (TextPair(a="text", b="word " * 600), "a text of 602 tokens; the model reads 512"),
        (TextPair(a="x" * 100_000, b="text"), "a text of 100000 characters"),
    ],
    ids=["a empty", "b blank", "too many tokens", "too many characters"],
)
async def test_a_wrong_request_is_refused_with_its_fault(scoring: ScoringClient, pair: TextPair, fault: str) -> None:
    with pytest.raises(ServiceError, match=fault) as refused:
        await scoring.score(pair)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_a_folder_without_a_model_stops_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(StartError, match="holds no model"):
        Scoring(model=str(tmp_path_factory.mktemp("empty")))
