"""Scoring as a service: the call around the model of `model.py`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from services.scoring.model import EmbeddingModel, TextTooLongError
from services.scoring.v1.scoring_toolkit import ScoringBase, Similarity, TextPair
from toolkit.context import Context
from toolkit.errors import Code, ServiceError


class Scoring(ScoringBase):
    """One model on one device."""

    def __init__(self, *, model: str = "minilm-l6", device: str = "cpu") -> None:
        self._model = EmbeddingModel(model, device)

    async def __aenter__(self) -> Self:
        self._worker = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="model"
        )  # one thread at a time for the model
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def score(self, request: TextPair, context: Context) -> Similarity:
        for name, text in (("a", request.a), ("b", request.b)):
            if not text.strip():
                raise ServiceError(Code.INVALID_ARGUMENT, f"{name}: empty; give two texts to compare")
        loop = asyncio.get_running_loop()
        try:
            value = await loop.run_in_executor(self._worker, self._model.similarity, request.a, request.b)
        except TextTooLongError as error:
            raise ServiceError(Code.INVALID_ARGUMENT, str(error)) from None
        return Similarity(value=value)
