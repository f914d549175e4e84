"""The inference graph: two generators at once, each draft then scored, all returned."""

from __future__ import annotations

import asyncio

from services.inference_graph.v1.inference_graph_toolkit import InferenceGraphBase, Scored, ScoreReply, ScoreRequest
from services.scoring.v1.scoring_toolkit import ScoringClient, TextPair
from services.text_generation.v1.text_generation_toolkit import GenerateRequest, TextGenerationClient
from toolkit.context import Context
from toolkit.service import depends


class InferenceGraph(InferenceGraphBase):
    """Holds no model: it only asks."""

    gpt2 = depends(TextGenerationClient)
    distilgpt2 = depends(TextGenerationClient)
    classifier = depends(ScoringClient)

    def __init__(self, *, max_new_tokens: int = 40) -> None:
        """`max_new_tokens` is the longest draft."""
        self._max_new_tokens = max_new_tokens

    async def generate_score(self, request: ScoreRequest, context: Context) -> ScoreReply:
        ask = GenerateRequest(prompt=request.sentence, max_new_tokens=self._max_new_tokens, seed=request.seed)
        gpt2, distilgpt2 = await asyncio.gather(self.gpt2.generate(ask), self.distilgpt2.generate(ask))
        scored = await asyncio.gather(
            self._scored("gpt2", request.sentence, gpt2.text),
            self._scored("distilgpt2", request.sentence, distilgpt2.text),
        )
        return ScoreReply(results=list(scored))

    async def _scored(self, generator: str, sentence: str, text: str) -> Scored:
        if not text.strip():  # a model may end the text at once: nothing to compare
            return Scored(generator=generator, text=text)
        similarity = await self.classifier.score(TextPair(a=sentence, b=text))
        return Scored(generator=generator, text=text, score=similarity.value)
