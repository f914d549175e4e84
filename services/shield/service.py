"""A shield: a gate reads each question before the expensive model does, and refuses with an error that has a type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.classification.v1.classification_toolkit import ClassificationClient, ClassifyRequest
from services.shield.v1.shield_toolkit import Answer, Question, Refusal, ShieldBase
from services.text_generation.v1.text_generation_toolkit import GenerateRequest, TextGenerationClient
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends

HARMLESS: Final = ("everyday life", "science, history and geography", "cooking, travel and animals")
LENGTH: Final = 40


class Shield(ShieldBase):
    """The gate may fail too: then nothing is answered, for its error is the call's error."""

    gate = depends(ClassificationClient)
    model = depends(TextGenerationClient)

    def __init__(self, *, forbidden: Sequence[str] = ("weapons and explosives", "medical treatment")) -> None:
        """`forbidden` are topics, as a person would name them."""
        self._forbidden = tuple(forbidden)

    async def ask(self, request: Question, context: Context) -> Answer:
        verdict = await self.gate.classify(ClassifyRequest(text=request.text, labels=[*self._forbidden, *HARMLESS]))
        best = verdict.labels[0]
        if best.name in self._forbidden:
            refusal = Refusal(topic=best.name, score=best.score)
            raise ServiceError(Code.PERMISSION_DENIED, f"not answered: this is about {best.name}", [refusal])
        answer = await self.model.generate(GenerateRequest(prompt=request.text, max_new_tokens=LENGTH, chat=True))
        return Answer(text=answer.text)
