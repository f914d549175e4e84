"""A router: a small model reads the question, and one of several larger ones answers it, token by token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from services.classification.v1.classification_toolkit import ClassificationClient, ClassifyRequest
from services.router.v1.router_toolkit import Piece, Question, RouterBase
from services.text_generation.v1.text_generation_toolkit import GenerateRequest, TextGenerationClient
from toolkit.context import Context
from toolkit.service import depends

TOPICS: Final = {
    "writing a story or a poem": "storyteller",
    "a question about facts and knowledge": "scholar",
}
"""What a question may be, and the handle that answers it."""
USUAL_LENGTH: Final = 48


class Router(RouterBase):
    """A model is loaded once however many questions it does not get; each has its own replicas and device."""

    classifier = depends(ClassificationClient)
    storyteller = depends(TextGenerationClient)
    scholar = depends(TextGenerationClient)

    async def ask(self, request: Question, context: Context) -> AsyncIterator[Piece]:
        kinds = await self.classifier.classify(ClassifyRequest(text=request.text, labels=list(TOPICS)))
        route = TOPICS[kinds.labels[0].name]
        yield Piece(route=route)
        length = request.max_new_tokens or USUAL_LENGTH
        ask = GenerateRequest(prompt=request.text, max_new_tokens=length, chat=True)
        writer = self.storyteller if route == "storyteller" else self.scholar
        async with writer.stream(ask) as tokens:
            async for token in tokens:
                if token.text:
                    yield Piece(route=route, text=token.text)
