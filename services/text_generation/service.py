"""Text generation as a service: the calls around the model of `model.py`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Self

from services.models import model_folder
from services.text_generation.model import CausalModel, PromptError, Step
from services.text_generation.sampling import Sampling
from services.text_generation.v1.text_generation_toolkit import (
    FinishReason,
    GenerateReply,
    GenerateRequest,
    TextGenerationBase,
    Token,
)
from toolkit.context import Context
from toolkit.errors import Code, ServiceError, StartError

MAX_TEMPERATURE = 2.0


class TextGeneration(TextGenerationBase):
    """One model on one device. Each of its steps makes a token for every call, so that they do not wait for each other."""

    @classmethod
    def __fetch__(cls, model: str = "smollm2-135m") -> None:
        model_folder(model)

    def __init__(
        self,
        *,
        model: str = "smollm2-135m",
        temperature: float = 0.0,
        top_p: float = 0.95,
        max_new_tokens: int = 256,
        max_batch: int = 16,
        cache_tokens: int = 16384,
        device: str = "cpu",
    ) -> None:
        """`temperature` and `max_new_tokens` are for requests that name none; the latter is also the limit for those that do.

        `max_batch` is how many calls take part in a step of the model; those beyond wait for their turn. `cache_tokens` is
        how many tokens of all texts the model keeps in memory, and so the longest text, where its context is not shorter.
        """
        _check_args(temperature, top_p, max_new_tokens)
        _check_sizes(max_batch, cache_tokens)
        self._temperature = temperature
        self._top_p = top_p
        self._max_new_tokens = max_new_tokens
        self._model = CausalModel(model, device, max_batch=max_batch, cache_tokens=cache_tokens)

    async def __aenter__(self) -> Self:
        await self._model.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._model.__aexit__(kind, error, trace)

    async def generate(self, request: GenerateRequest, context: Context) -> GenerateReply:
        sampling = self._sampling(request)
        async with aclosing(self._steps(request, sampling)) as found:
            steps = [step async for step in found]
        return GenerateReply(
            text="".join(step.text for step in steps),
            tokens=len(steps),
            finish_reason=_finish_reason(steps[-1]),
            seed=sampling.seed,
        )

    async def stream(self, request: GenerateRequest, context: Context) -> AsyncIterator[Token]:
        async with aclosing(self._steps(request, self._sampling(request))) as steps:
            async for step in steps:
                yield Token(text=step.text, finish_reason=_finish_reason(step))

    async def _steps(self, request: GenerateRequest, sampling: Sampling) -> AsyncGenerator[Step, None]:
        try:
            encode = partial(self._model.encode, request.prompt, sampling.max_new_tokens, chat=request.chat)
            ids = await asyncio.to_thread(encode)
        except PromptError as error:
            raise ServiceError(Code.INVALID_ARGUMENT, str(error)) from None
        async with aclosing(self._model.steps(ids, sampling)) as steps:
            async for step in steps:
                yield step

    def _sampling(self, request: GenerateRequest) -> Sampling:
        temperature = self._temperature if request.temperature is None else request.temperature
        if not request.prompt:
            raise ServiceError(Code.INVALID_ARGUMENT, "prompt: empty; give some text to continue")
        if not 0 <= temperature <= MAX_TEMPERATURE:
            raise ServiceError(Code.INVALID_ARGUMENT, f"temperature: {temperature} is not in 0 to {MAX_TEMPERATURE:g}")
        if not 0 <= request.max_new_tokens <= self._max_new_tokens:
            raise ServiceError(
                Code.INVALID_ARGUMENT, f"max_new_tokens: {request.max_new_tokens} is not in 0 to {self._max_new_tokens}"
            )
        return Sampling(
            max_new_tokens=request.max_new_tokens or self._max_new_tokens,
            temperature=temperature,
            top_p=self._top_p,
            seed=secrets.randbits(32) if request.seed is None else request.seed,
        )


def _check_args(temperature: float, top_p: float, max_new_tokens: int) -> None:
    try:
        is_whole = isinstance(max_new_tokens, int) and max_new_tokens >= 1
        is_right = 0 <= temperature <= MAX_TEMPERATURE and 0 < top_p <= 1 and is_whole
    except TypeError:  # they come from a graph file, so a number may be a text
        is_right = False
    if not is_right:
        raise StartError(
            f"args: temperature must be a number in 0 to {MAX_TEMPERATURE:g}, top_p above 0 and at most 1, "
            f"max_new_tokens a whole number from 1; found {temperature!r}, {top_p!r}, {max_new_tokens!r}"
        )


def _check_sizes(max_batch: int, cache_tokens: int) -> None:
    for name, value in (("max_batch", max_batch), ("cache_tokens", cache_tokens)):
        if not isinstance(value, int) or value < 1:
            raise StartError(f"args: {name} must be a whole number from 1; found {value!r}")


def _finish_reason(step: Step) -> FinishReason:
    if not step.is_last:
        return FinishReason.FINISH_REASON_UNSPECIFIED
    return FinishReason.END_OF_TEXT if step.is_end_of_text else FinishReason.LENGTH
