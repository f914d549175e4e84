"""The examples of composition with their real models, in one process: several models, a sequence, an ensemble, a diamond."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import pytest

from services.classification.service import ByLikelihood, ByMeaning
from services.classification.v1.classification_toolkit import (
    ClassificationClient,
    ClassifyReply,
    ClassifyRequest,
    Label,
)
from services.diamond.service import Digest, Oddity
from services.diamond.v1.diamond_toolkit import DigestClient, OddityClient
from services.ensemble.service import Ensemble
from services.ensemble.v1.ensemble_toolkit import EnsembleClient
from services.multi_model.service import MultiModel
from services.multi_model.v1.multi_model_toolkit import MoodRequest, MultiModelClient
from services.sequential.service import Preparation, Summary, split
from services.sequential.v1.sequential_toolkit import (
    Document,
    PreparationClient,
    Prepared,
    SummaryClient,
    SummaryRequest,
)
from toolkit.errors import Code, ServiceError
from toolkit.service import Service
from toolkit.testing import Fake, fake, serve

LABELS = ["sport", "politics", "technology", "weather"]
TEXT = (
    "The town has bought six electric ferries. They replace diesel boats. The ferries are charged overnight. "
    "My aunt likes her tea very sweet. Passengers say that the electric boats are quiet."
)


@pytest.fixture(scope="module")
def by_meaning() -> ByMeaning:
    return ByMeaning()


@pytest.fixture(scope="module")
def by_likelihood() -> ByLikelihood:
    return ByLikelihood()


@pytest.fixture(scope="module")
def preparation() -> Preparation:
    return Preparation()


@pytest.fixture(params=["by_meaning", "by_likelihood"])
async def classification(request: pytest.FixtureRequest) -> AsyncIterator[ClassificationClient]:
    async with serve(request.getfixturevalue(request.param), ClassificationClient) as client:
        yield client


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("The keeper held the penalty in the last minute.", "sport"),
        ("Parliament passed the budget by two votes.", "politics"),
        ("A storm will cross the coast on Friday.", "weather"),
    ],
)
async def test_the_best_label_is_what_a_person_would_say(
    classification: ClassificationClient, text: str, best: str
) -> None:
    reply = await classification.classify(ClassifyRequest(text=text, labels=LABELS))
    assert reply.labels[0].name == best
    assert sorted(label.name for label in reply.labels) == sorted(LABELS)
    assert sum(label.score for label in reply.labels) == pytest.approx(1)


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (ClassifyRequest(text=" ", labels=LABELS), "text: empty"),
        (ClassifyRequest(text="a text", labels=["one"]), "labels: 1 given"),
        (ClassifyRequest(text="a text", labels=["one", "one"]), "different ones"),
        (ClassifyRequest(text="a text", labels=["one", ""]), "has not 1 to 100 characters"),
        (ClassifyRequest(text="word " * 9000, labels=LABELS), "tokens"),
    ],
    ids=["no text", "one label", "twice", "empty label", "too long"],
)
async def test_what_cannot_be_classified_is_refused(
    classification: ClassificationClient, request_: ClassifyRequest, fault: str
) -> None:
    with pytest.raises(ServiceError, match=fault) as refused:
        await classification.classify(request_)
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_several_models_in_one_service_answer_apart_and_together() -> None:
    ask = ClassifyRequest(text="The soup was the best that I have had in years.", labels=["food", "price"])
    async with serve(MultiModel(), MultiModelClient) as models:
        topic = await models.topic(ask)
        mood = await models.mood(MoodRequest(text=ask.text))
        both = await models.combined(ask)
    assert (topic.labels[0].name, mood.labels[0].name) == ("food", "something good")
    assert (both.topic, both.mood) == (topic.labels, mood.labels)


def down() -> Fake:
    return fake(ClassificationClient, classify=ServiceError(Code.UNAVAILABLE, "gone"))


def ensemble_of(by_meaning: Service, by_likelihood: Service) -> AbstractAsyncContextManager[EnsembleClient]:
    return serve(Ensemble(), EnsembleClient, handles={"by_meaning": by_meaning, "by_likelihood": by_likelihood})


async def test_an_ensemble_is_the_mean_of_its_members(by_meaning: ByMeaning, by_likelihood: ByLikelihood) -> None:
    ask = ClassifyRequest(text="Parliament passed the budget by two votes.", labels=LABELS)
    async with ensemble_of(by_meaning, by_likelihood) as ensemble:
        prediction = await ensemble.predict(ask)
    one, other = ({label.name: label.score for label in vote.labels} for vote in prediction.votes)
    for label in prediction.labels:
        assert label.score == pytest.approx((one[label.name] + other[label.name]) / 2)
    assert prediction.labels[0].name == "politics"


async def test_an_ensemble_keeps_the_good_answer_when_a_member_fails(by_meaning: ByMeaning) -> None:
    ask = ClassifyRequest(text="Parliament passed the budget by two votes.", labels=LABELS)
    async with ensemble_of(by_meaning, down()) as ensemble:
        prediction = await ensemble.predict(ask)
    assert prediction.labels[0].name == "politics"
    assert [vote.error for vote in prediction.votes] == ["", "UNAVAILABLE: gone"]


async def test_an_ensemble_without_any_answer_fails_and_so_does_a_wrong_request(by_meaning: ByMeaning) -> None:
    async with ensemble_of(down(), down()) as ensemble:
        with pytest.raises(ServiceError, match="no classifier has answered"):
            await ensemble.predict(ClassifyRequest(text="a text", labels=LABELS))
    async with ensemble_of(by_meaning, down()) as ensemble:
        with pytest.raises(ServiceError, match="text: empty"):
            await ensemble.predict(ClassifyRequest(text="", labels=LABELS))


async def test_a_mean_is_over_those_that_answered_alone() -> None:
    labels = [Label(name=name, score=float(not place)) for place, name in enumerate(LABELS)]
    sure = fake(ClassificationClient, classify=ClassifyReply(labels=labels))
    async with ensemble_of(sure, down()) as ensemble:
        prediction = await ensemble.predict(ClassifyRequest(text="a", labels=LABELS))
    assert prediction.labels[0] == Label(name="sport", score=1)


async def test_a_sequence_hands_a_tensor_from_step_to_step(preparation: Preparation) -> None:
    summary = Summary()
    async with serve(preparation, PreparationClient) as summary.preparation, serve(summary, SummaryClient) as client:
        prepared = await summary.preparation.prepare(Document(text=TEXT))
        reply = await client.summarise(SummaryRequest(text=TEXT, sentences=3))
    assert prepared.vectors is not None
    assert prepared.vectors.shape == (5, 384)
    assert "aunt" not in " ".join(each.text for each in reply.sentences)
    assert [each.position for each in reply.sentences] == sorted(each.position for each in reply.sentences)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("A line\nthat goes on. The next", ["A line that goes on.", "The next"]),
        ("A heading\n\nIts text.", ["A heading", "Its text."]),
        ("It costs 3.50 in all.", ["It costs 3.50 in all."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split(text) == sentences


@pytest.mark.parametrize("text", ["", "x" * 100_001, "A. " * 600], ids=["empty", "long", "many"])
async def test_what_has_no_sentences_or_too_many_is_refused(preparation: Preparation, text: str) -> None:
    async with serve(preparation, PreparationClient) as client:
        with pytest.raises(ServiceError, match="text: ") as refused:
            await client.prepare(Document(text=text))
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_the_shared_service_of_a_diamond_runs_once(preparation: Preparation) -> None:
    summary, oddity, digest = Summary(), Oddity(), Digest()
    async with serve(preparation, PreparationClient) as shared:
        summary.preparation = oddity.preparation = shared
        before = (await shared.prepare(Document(text="Before."))).passes
        async with (
            serve(summary, SummaryClient) as digest.summary,
            serve(oddity, OddityClient) as digest.oddity,
            serve(digest, DigestClient) as client,
        ):
            reply = await client.read(Document(text=TEXT))
        after: Prepared = await shared.prepare(Document(text="After."))
    assert after.passes == before + 2  # one for the text, one for this question
    assert reply.oddity is not None
    assert reply.oddity.text == "My aunt likes her tea very sweet."
    assert all("ferr" in each.text or "boat" in each.text for each in reply.summary)
