"""The scoring service with its real model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.scoring.model import TextTooLongError
from services.scoring.service import Scoring
from services.scoring.v1.scoring_toolkit import ScoringClient, Similarity, TextPair
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


PAIRS = [
    TextPair(a=a, b=b)
    for a, b in [
        ("A cat.", "A kitten."),
        ("The weather is lovely today.", "It's so sunny outside!"),
        (
            "Stop",
            "The keeper of the lighthouse climbed the stairs with his cat, as he did every evening, and lit the lamp.",
        ),
        ("word " * 100, "word"),
        ("One.", "Two, and a little more than that, so that it is longer."),
    ]
]


async def test_a_batch_says_what_its_pairs_say_one_by_one(service: Scoring, scoring: ScoringClient) -> None:
    alone = [(await scoring.score(pair)).value for pair in PAIRS]
    figures = service.score.figures  # type: ignore[attr-defined]  # of the batches, which the handler hides
    before = figures.batches
    together = await asyncio.gather(*(scoring.score(pair) for pair in PAIRS * 4))
    assert [reply.value for reply in together] == pytest.approx(alone * 4, abs=1e-5)
    assert figures.batches - before <= 3, "one for each length, more or less than a few words"


async def test_a_wrong_request_fails_alone(scoring: ScoringClient) -> None:
    good, long, empty = TextPair(a="A cat.", b="A kitten."), TextPair(a="x", b="word " * 600), TextPair(a="x")
    found = await asyncio.gather(*(scoring.score(pair) for pair in (good, long, empty, good)), return_exceptions=True)
    assert [each.code if isinstance(each, ServiceError) else type(each) for each in found] == [
        Similarity,
        Code.INVALID_ARGUMENT,
        Code.INVALID_ARGUMENT,
        Similarity,
    ]


def test_a_pair_that_is_too_long_fails_alone_within_one_pass(service: Scoring) -> None:
    model = service._model
    found = model.similarities([("a cat", "a cat"), ("word " * 600, "x"), ("x", "y" * 100_000), ("a dog", "a dog")])
    assert [type(each).__name__ for each in found] == ["float", "TextTooLongError", "TextTooLongError", "float"]
    assert [found[0], found[3]] == pytest.approx([1, 1])
    assert all(isinstance(each, TextTooLongError) for each in model.similarities([("word " * 600, "x")]))


def test_a_folder_without_a_model_stops_the_start(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(StartError, match="holds no model"):
        Scoring(model=str(tmp_path_factory.mktemp("empty")))
