"""Classification as a service: one contract, two classes that answer it in different ways."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from services.classification.model import Classifier, LikelihoodClassifier, MeaningClassifier
from services.classification.v1.classification_toolkit import (
    ClassificationBase,
    ClassifyReply,
    ClassifyRequest,
    Label,
)
from services.scoring.model import TextTooLongError
from toolkit.context import Context
from toolkit.errors import Code, ServiceError

MAX_LABELS = 32
MAX_LABEL = 100
"""Characters."""


class ModelThread:
    """The one thread in which models compute, so that calls do not fight for the cores."""

    async def __aenter__(self) -> Self:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def classify(self, model: Classifier, text: str, labels: Sequence[str]) -> list[Label]:
        """The best label first. Raises ServiceError for what no model could answer."""
        _check(text, labels)
        loop = asyncio.get_running_loop()
        try:
            shares = await loop.run_in_executor(self._worker, model.shares, text, labels)
        except TextTooLongError as error:
            raise ServiceError(Code.INVALID_ARGUMENT, str(error)) from None
        found = [Label(name=name, score=share) for name, share in zip(labels, shares, strict=True)]
        return sorted(found, key=lambda label: -label.score)


class _Classification(ClassificationBase):
    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._thread = ModelThread()

    async def __aenter__(self) -> Self:
        await self._thread.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._thread.__aexit__(kind, error, trace)

    async def classify(self, request: ClassifyRequest, context: Context) -> ClassifyReply:
        return ClassifyReply(labels=await self._thread.classify(self._model, request.text, request.labels))


class ByMeaning(_Classification):
    """With an embedding model."""

    def __init__(self, *, model: str = "minilm-l6", device: str = "cpu") -> None:
        super().__init__(MeaningClassifier(model, device))


class ByLikelihood(_Classification):
    """With a language model."""

    def __init__(self, *, model: str = "smollm2-135m", device: str = "cpu") -> None:
        super().__init__(LikelihoodClassifier(model, device))


def _check(text: str, labels: Sequence[str]) -> None:
    if not text.strip():
        raise ServiceError(Code.INVALID_ARGUMENT, "text: empty; give a text to classify")
    if not 2 <= len(labels) <= MAX_LABELS or len(set(labels)) < len(labels):
        raise ServiceError(Code.INVALID_ARGUMENT, f"labels: {len(labels)} given; give 2 to {MAX_LABELS} different ones")
    for label in labels:
        if not label.strip() or len(label) > MAX_LABEL:
            raise ServiceError(Code.INVALID_ARGUMENT, f"labels: {label[:20]!r} has not 1 to {MAX_LABEL} characters")
