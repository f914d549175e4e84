"""Embedding as a service: the call around the model of `services.scoring.model`."""

from __future__ import annotations

from services.embedding.v1.embedding_toolkit import EmbeddingBase, Text, Vector
from services.scoring.model import EmbeddingModel, TextTooLongError
from toolkit.batching import BatchContext, batched, size_class
from toolkit.errors import Code, ServiceError
from toolkit.tensor import Tensor


class EmptyTextError(ValueError):
    """There is nothing to embed."""


class Embedding(EmbeddingBase):
    """One model on one device."""

    def __init__(self, *, model: str = "minilm-l6", device: str = "cpu") -> None:
        self._model = EmbeddingModel(model, device)

    @batched(max_size=32, pad_by=lambda request: size_class(len(request.text)))
    def embed(self, requests: list[Text], context: BatchContext) -> list[Vector | ServiceError]:
        texts = [request.text for request in requests]
        try:
            return list(self._vectors(texts))
        except (TextTooLongError, EmptyTextError):  # one of them is at fault, and fails alone
            return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> Vector | ServiceError:
        try:
            return self._vectors([text])[0]
        except (TextTooLongError, EmptyTextError) as error:
            return ServiceError(Code.INVALID_ARGUMENT, f"text: {error}")

    def _vectors(self, texts: list[str]) -> list[Vector]:
        if not all(text.strip() for text in texts):
            raise EmptyTextError("empty; give some words")
        return [Vector(values=Tensor.of(row)) for row in self._model.embeddings(texts)]
