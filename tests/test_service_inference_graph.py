"""The inference graph with stand-ins for its models: what it asks, when, and what it makes of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.inference_graph.service import InferenceGraph
from services.inference_graph.v1.inference_graph_toolkit import InferenceGraphClient, Scored, ScoreRequest
from services.scoring.v1.scoring_toolkit import ScoringBase, ScoringClient, Similarity, TextPair
from services.text_generation.v1.text_generation_toolkit import (
    GenerateReply,
    GenerateRequest,
    TextGenerationBase,
    TextGenerationClient,
)
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.testing import serve


class Writer(TextGenerationBase):
    """Answers with one text, once all writers of the barrier are asked."""

    def __init__(self, text: str, together: asyncio.Barrier) -> None:
        self.text = text
        self.together = together
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest, context: Context) -> GenerateReply:
        self.asked.append(request)
        await self.together.wait()
        return GenerateReply(text=self.text, tokens=1)


class Scorer(ScoringBase):
    """Scores by length, and refuses what the real one refuses."""

    async def score(self, request: TextPair, context: Context) -> Similarity:
        if not request.b.strip():
            raise ServiceError(Code.INVALID_ARGUMENT, "b: empty")
        return Similarity(value=len(request.b) / 100)


@asynccontextmanager
async def graph_of(gpt2: Writer, distilgpt2: Writer, classifier: ScoringBase) -> AsyncIterator[InferenceGraphClient]:
    graph = InferenceGraph(max_new_tokens=17)
    async with (
        serve(gpt2, TextGenerationClient) as graph.gpt2,
        serve(distilgpt2, TextGenerationClient) as graph.distilgpt2,
        serve(classifier, ScoringClient) as graph.classifier,
        serve(graph, InferenceGraphClient) as client,
    ):
        yield client


async def test_both_drafts_come_back_with_their_scores_in_order() -> None:
    together = asyncio.Barrier(2)
    async with graph_of(Writer("x" * 25, together), Writer("y" * 50, together), Scorer()) as graph:
        reply = await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert reply.results == [
        Scored(generator="gpt2", text="x" * 25, score=0.25),
        Scored(generator="distilgpt2", text="y" * 50, score=0.5),
    ]


async def test_both_generators_are_asked_at_once_with_the_same_request() -> None:
    together = asyncio.Barrier(2)  # lets nobody pass before both are asked
    gpt2, distilgpt2 = Writer("a", together), Writer("b", together)
    async with graph_of(gpt2, distilgpt2, Scorer()) as graph:
        await graph.generate_score(ScoreRequest(sentence="I have an idea!", seed=5), timeout=10)
    expected = GenerateRequest(prompt="I have an idea!", max_new_tokens=17, seed=5)
    assert (gpt2.asked, distilgpt2.asked) == ([expected], [expected])


async def test_a_draft_without_text_scores_nothing() -> None:
    together = asyncio.Barrier(2)
    async with graph_of(Writer("", together), Writer("text", together), Scorer()) as graph:
        reply = await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert [each.score for each in reply.results] == pytest.approx([0, 0.04])


async def test_the_error_of_a_model_keeps_its_code() -> None:
    class Full(ScoringBase):
        async def score(self, request: TextPair, context: Context) -> Similarity:
            raise ServiceError(Code.RESOURCE_EXHAUSTED, "the queue is full")

    together = asyncio.Barrier(2)
    async with graph_of(Writer("a", together), Writer("b", together), Full()) as graph:
        with pytest.raises(ServiceError, match="the queue is full") as raised:
            await graph.generate_score(ScoreRequest(sentence="I have an idea!"))
    assert raised.value.code is Code.RESOURCE_EXHAUSTED
