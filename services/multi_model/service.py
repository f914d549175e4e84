"""Several models in one service: they share a process and a device, and have a method each and one together."""

from __future__ import annotations

from typing import Final

from services.classification.model import LikelihoodClassifier, MeaningClassifier
from services.classification.service import classified
from services.classification.v1.classification_toolkit import ClassifyReply, ClassifyRequest, Label
from services.multi_model.v1.multi_model_toolkit import CombinedReply, MoodRequest, MultiModelBase
from toolkit.blocking import ModelThread
from toolkit.context import Context

MOODS: Final = ("something good", "something bad")


class MultiModel(MultiModelBase):
    """For models that always go together. Those that are to scale apart are services of their own: see `ensemble`."""

    def __init__(self, *, topics: str = "minilm-l6", moods: str = "smollm2-135m", device: str = "cpu") -> None:
        self._topics = MeaningClassifier(topics, device)
        self._moods = LikelihoodClassifier(moods, device)
        self._thread = ModelThread()

    async def topic(self, request: ClassifyRequest, context: Context) -> ClassifyReply:
        return ClassifyReply(labels=await classified(self._thread, self._topics, request.text, request.labels))

    async def mood(self, request: MoodRequest, context: Context) -> ClassifyReply:
        return ClassifyReply(labels=await self._mood(request.text))

    async def combined(self, request: ClassifyRequest, context: Context) -> CombinedReply:
        topic = await classified(self._thread, self._topics, request.text, request.labels)
        return CombinedReply(topic=topic, mood=await self._mood(request.text))

    async def _mood(self, text: str) -> list[Label]:
        return await classified(self._thread, self._moods, text, MOODS)
