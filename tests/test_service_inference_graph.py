"""The inference graph with fakes of its models: what it asks, when, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from services.inference_graph.service import InferenceGraph
from services.inference_graph.v1.inference_graph_toolkit import InferenceGraphClient, Scored, ScoreRequest
from services.scoring.v1.scoring_toolkit import ScoringClient, Similarity, TextPair
from services.text_generation.v1.text_generation_toolkit import GenerateReply, GenerateRequest, TextGenerationClient
from toolkit.errors import Code, ServiceError
from toolkit.testing import Fake, fake, serve


def writer_of(text: str, together: asyncio.Barrier) -> Fake:
    """Answers with one text, once all writers of the barrier are asked."""

    async def generate(request: GenerateRequest) -> GenerateReply:
        await together.wait()
        return GenerateReply(text=text, tokens=1)

    return fake(TextGenerationClient, generate=generate, stream=[])


def score(request: TextPair) -> Similarity | ServiceError:
    """By length; what the real one refuses is refused."""
    if not request.b.strip():
        return ServiceError(Code.INVALID_ARGUMENT, "b: empty")
    return Similarity(value=len(request.b) / 100)


def graph_of(gpt2: Fake, distilgpt2: Fake, score: Any = score) -> AbstractAsyncContextManager[InferenceGraphClient]:
    handles = {"gpt2": gpt2, "distilgpt2": distilgpt2, "classifier": fake(ScoringClient, score=score)}
    return serve(InferenceGraph(max_new_tokens=17), InferenceGraphClient, handles=handles)


async def test_both_drafts_come_back_with_their_scores_in_order() -> None:
    together = asyncio.Barrier(2)
    async with graph_of(writer_of("x" * 25, together), writer_of("y" * 50, together)) as graph:
        reply = await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert reply.results == [
        Scored(generator="gpt2", text="x" * 25, score=0.25),
        Scored(generator="distilgpt2", text="y" * 50, score=0.5),
    ]


async def test_both_generators_are_asked_at_once_with_the_same_request() -> None:
    together = asyncio.Barrier(2)  # lets nobody pass before both are asked
    gpt2, distilgpt2 = writer_of("a", together), writer_of("b", together)
    async with graph_of(gpt2, distilgpt2) as graph:
        await graph.generate_score(ScoreRequest(sentence="I have an idea!", seed=5), timeout=10)
    expected = GenerateRequest(prompt="I have an idea!", max_new_tokens=17, seed=5)
    assert (gpt2.asked["generate"], distilgpt2.asked["generate"]) == ([expected], [expected])


async def test_a_draft_without_text_scores_nothing() -> None:
    together = asyncio.Barrier(2)
    async with graph_of(writer_of("", together), writer_of("text", together)) as graph:
        reply = await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert [each.score for each in reply.results] == pytest.approx([0, 0.04])


async def test_the_error_of_a_model_keeps_its_code() -> None:
    together = asyncio.Barrier(2)
    async with graph_of(
        writer_of("a", together), writer_of("b", together), ServiceError(Code.RESOURCE_EXHAUSTED, "the queue is full")
    ) as graph:
        with pytest.raises(ServiceError, match="the queue is full") as raised:
            await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert raised.value.code is Code.RESOURCE_EXHAUSTED
