"""Classification as a service: one contract, two classes that answer it in different ways."""

from __future__ import annotations

from collections.abc import Sequence

from services.classification.model import Classifier, LikelihoodClassifier, MeaningClassifier
from services.classification.v1.classification_toolkit import (
    ClassificationBase,
    ClassifyReply,
    ClassifyRequest,
    Label,
)
from services.scoring.model import TextTooLongError
from toolkit.blocking import ModelThread
from toolkit.context import Context
from toolkit.errors import Code, ServiceError

MAX_LABELS = 32
MAX_LABEL = 100
"""Characters."""


async def classified(thread: ModelThread, model: Classifier, text: str, labels: Sequence[str]) -> list[Label]:
    """The best label first. Raises ServiceError for what no model could answer."""
    _check(text, labels)
    try:
        shares = await thread.run(model.shares, text, labels)
    except TextTooLongError as error:
        raise ServiceError(Code.INVALID_ARGUMENT, str(error)) from None
    found = [Label(name=name, score=share) for name, share in zip(labels, shares, strict=True)]
    return sorted(found, key=lambda label: -label.score)


class _Classification(ClassificationBase):
    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._thread = ModelThread()

    async def classify(self, request: ClassifyRequest, context: Context) -> ClassifyReply:
        return ClassifyReply(labels=await classified(self._thread, self._model, request.text, request.labels))


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
