"""Fakes, faults, and whole graphs under test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.classification.v1.classification_toolkit import (
    ClassificationClient,
    ClassifyReply,
    ClassifyRequest,
    Label,
)
from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient, Note
from services.ensemble.service import Ensemble
from services.ensemble.v1.ensemble_toolkit import EnsembleClient
from services.inference_graph.service import InferenceGraph
from services.inference_graph.v1.inference_graph_toolkit import InferenceGraphClient, ScoreRequest
from services.router.service import Router
from services.router.v1.router_toolkit import Question, RouterClient
from services.scoring.v1.scoring_toolkit import ScoringClient, Similarity, TextPair
from services.text_generation.v1.text_generation_toolkit import GenerateReply, TextGenerationClient, Token
from toolkit.errors import Code, GraphError, ServiceError, StartError
from toolkit.testing import Faults, fake, faulty, graph_in_process, serve

GRAPH = Path(__file__).parents[1] / "services/inference_graph/graph.yaml"
TWO = ClassifyReply(labels=[Label(name="a", score=0.9), Label(name="b", score=0.1)])


def writer(text: str) -> Any:
    return fake(TextGenerationClient, generate=GenerateReply(text=text), stream=[Token(text=text)])


async def test_a_service_with_fakes_behind_it() -> None:
    classifier = fake(ScoringClient, score=lambda request: Similarity(value=len(request.b) / 10))
    handles = {"gpt2": writer("one"), "distilgpt2": writer("three"), "classifier": classifier}
    async with serve(InferenceGraph(), InferenceGraphClient, handles=handles) as graph:
        reply = await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert [(each.text, round(each.score, 1)) for each in reply.results] == [("one", 0.3), ("three", 0.5)]
    assert sorted(pair.b for pair in classifier.asked["score"]) == ["one", "three"]


async def test_fakes_of_streams_give_items_and_then_an_error() -> None:
    gone = ServiceError(Code.UNAVAILABLE, "gone")
    broken = fake(TextGenerationClient, generate=GenerateReply(), stream=[Token(text="An "), gone])
    found: list[str] = []

    async def read(client: RouterClient) -> None:
        async for piece in client.ask(Question(text="What is this?")):
            found.append(piece.text)

    label = ClassifyReply(labels=[Label(name="a question about facts and knowledge", score=1)])
    handles = {"classifier": fake(ClassificationClient, classify=label), "storyteller": broken, "scholar": broken}
    async with serve(Router(), RouterClient, handles=handles) as router:
        with pytest.raises(ServiceError, match="gone"):
            await read(router)
    assert found == ["", "An "]


async def test_fakes_may_compute_and_stream_themselves() -> None:
    async def repeat(request: Note) -> AsyncIterator[Note]:
        return (Note(number=number) async for number in numbers(request.times))

    async def numbers(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def join(requests: AsyncIterator[Note]) -> Note:
        return Note(tags=[request.text async for request in requests])

    echo = {
        method.attribute: ServiceError(Code.UNIMPLEMENTED, "not here") for method in EchoClient.__contract__.methods
    }
    async with serve(fake(EchoClient, **{**echo, "repeat": repeat, "join": join}), EchoClient) as client:
        assert [note.number async for note in client.repeat(Note(times=3))] == [0, 1, 2]
        with pytest.raises(ServiceError, match="not here"):
            await client.say(Note())


@pytest.mark.parametrize(
    ("client", "answers", "fault"),
    [
        (ScoringClient, {}, "lacks score: say what each answers"),
        (ScoringClient, {"scor": Similarity()}, "no method 'scor'; did you mean 'score'?"),
        (ScoringClient, {"score": TextPair()}, "replies with Similarity, not TextPair"),
        (ScoringClient, {"score": 0.5}, "replies with Similarity, not float"),
        (TextGenerationClient, {"generate": GenerateReply(), "stream": Token()}, "give a list of Token"),
        (TextGenerationClient, {"generate": GenerateReply(), "stream": [GenerateReply()]}, "Token, not GenerateReply"),
    ],
)
def test_a_fake_that_does_not_fit_its_contract_is_refused(client: Any, answers: dict[str, Any], fault: str) -> None:
    with pytest.raises(TypeError, match=fault):
        fake(client, **answers)


async def test_a_fake_that_computes_the_wrong_message_fails_the_call(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(fake(ScoringClient, score=lambda request: 0.5), ScoringClient) as scoring:
        with pytest.raises(ServiceError, match="internal error"):
            await scoring.score(TextPair())
    assert "must return Similarity, not float" in caplog.text


async def test_wrong_handles_are_refused() -> None:
    with pytest.raises(TypeError, match="no handle 'classifer'; known here: by_meaning, by_likelihood"):
        async with serve(Ensemble(), EnsembleClient, handles={"classifer": Echo()}):
            pass
    with pytest.raises(TypeError, match=r"Echo serves services\.echo\.v1\.Echo"):
        async with serve(Ensemble(), EnsembleClient, handles={"by_meaning": Echo()}):
            pass
    async with serve(Echo(), EchoClient) as echo:
        with pytest.raises(TypeError, match=r"the handle by_meaning calls services\.echo"):
            async with serve(Ensemble(), EnsembleClient, handles={"by_meaning": echo}):
                pass


async def test_injected_failures_end_and_deadlines_hold_for_injected_delays() -> None:
    async with serve(fake(ScoringClient, score=Similarity(value=1)), ScoringClient) as scoring:
        broken = faulty(scoring, Faults(fail=ServiceError(Code.UNAVAILABLE, "gone"), times=2))
        outcomes = [await asyncio.gather(broken.score(TextPair()), return_exceptions=True) for _ in range(3)]
        assert [str(outcome) for (outcome,) in outcomes[:2]] == ["UNAVAILABLE: gone"] * 2
        assert outcomes[2] == [Similarity(value=1)]
        slow = faulty(scoring, Faults(delay=60))
        with pytest.raises(ServiceError, match="the deadline passed on the way"):
            await slow.score(TextPair(), timeout=0.01)


async def test_a_whole_graph_in_this_process_with_stand_ins_for_its_models() -> None:
    instead = {
        "gpt2": writer("one"),
        "distilgpt2": writer("two"),
        "classifier": fake(ScoringClient, score=Similarity(value=0.25)),
    }
    async with graph_in_process(GRAPH, InferenceGraphClient, instead=instead) as graph:
        reply = await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert [each.text for each in reply.results] == ["one", "two"]


async def test_a_diamond_in_one_process_has_its_shared_service_once(tmp_path: Path) -> None:
    shared = fake(ClassificationClient, classify=TWO)
    graph = tmp_path / "graph.yaml"
    graph.write_text(
        "name: t\nentry: top\nservices:\n"
        "  shared: {class: 'services.classification.service:ByMeaning'}\n"
        "  top: {class: 'services.ensemble.service:Ensemble', bind: {by_meaning: shared, by_likelihood: shared}}\n"
    )
    async with graph_in_process(graph, EnsembleClient, instead={"shared": shared}) as ensemble:
        prediction = await ensemble.predict(ClassifyRequest(text="a text", labels=["a", "b"]))
    assert prediction.labels[0].name == "a"
    assert len(shared.asked["classify"]) == 2


async def test_what_is_wrong_with_a_graph_is_said(tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    with pytest.raises(TypeError, match="no deployment 'gpt3'; did you mean 'gpt2'"):
        async with graph_in_process(GRAPH, InferenceGraphClient, instead={"gpt3": Echo()}):
            pass
    graph.write_text("name: t\nentry: top\nservices:\n  top: {class: 'services.ensemble.service:Ensemble'}\n")
    with pytest.raises(StartError, match="handle by_meaning of top has no deployment 'by_meaning'"):
        async with graph_in_process(graph, EnsembleClient):
            pass
    graph.write_text("name: t\nentry: [\n")
    with pytest.raises(GraphError):
        async with graph_in_process(graph, EnsembleClient):
            pass
