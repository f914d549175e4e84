"""The relay: a writer's stream of tokens is the reviewer's stream of requests."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.relay.v1.relay_toolkit import RelayBase, ReviewerClient, Sentence, WriteRequest
from services.text_generation.v1.text_generation_toolkit import GenerateRequest, TextGenerationClient
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends


class Relay(RelayBase):
    """Holds no model: it only connects."""

    writer = depends(TextGenerationClient)
    reviewer = depends(ReviewerClient)

    async def write(self, request: WriteRequest, context: Context) -> AsyncIterator[Sentence]:
        async for sentence in self.reviewer.refine(self.writer.stream(_ask(request))):
            yield sentence


def _ask(request: WriteRequest) -> GenerateRequest:
    if not request.about.strip():
        raise ServiceError(Code.INVALID_ARGUMENT, "about: empty; say what to write about")
    prompt = f"Write a few sentences about {request.about.strip()}."
    return GenerateRequest(prompt=prompt, max_new_tokens=request.max_new_tokens, seed=request.seed, chat=True)
