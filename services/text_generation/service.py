"""Text generation as a service: the calls around the model of `model.py`."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from services.text_generation.model import CausalModel, PromptError, Sampling, Step
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
    """One model on one device. Calls take turns token by token, so a short text need not wait for a long one."""

    def __init__(
        self,
        *,
        model: str = "smollm2-135m",
        temperature: float = 0.0,
        top_p: float = 0.95,
        max_new_tokens: int = 256,
        device: str = "cpu",
    ) -> None:
        """`temperature` and `max_new_tokens` are for requests that name none; the latter is also the limit for those that do."""
        _check_args(temperature, top_p, max_new_tokens)
        self._temperature = temperature
        self._top_p = top_p
        self._max_new_tokens = max_new_tokens
        self._model = CausalModel(model, device)

    async def __aenter__(self) -> Self:
        self._worker = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="model"
        )  # one thread at a time for the model
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def generate(self, request: GenerateRequest, context: Context) -> GenerateReply:
        sampling = self._sampling(request)
        steps = [step async for step in self._steps(request.prompt, sampling)]
        return GenerateReply(
            text="".join(step.text for step in steps),
            tokens=len(steps),
            finish_reason=_finish_reason(steps[-1]),
            seed=sampling.seed,
        )

    async def stream(self, request: GenerateRequest, context: Context) -> AsyncIterator[Token]:
        async for step in self._steps(request.prompt, self._sampling(request)):
            yield Token(text=step.text, finish_reason=_finish_reason(step))

    async def _steps(self, prompt: str, sampling: Sampling) -> AsyncIterator[Step]:
        """Each step is a job of its own for the worker: a call that is cancelled costs at most the step that runs."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            ids = await run(self._worker, self._model.encode, prompt, sampling.max_new_tokens)
        except PromptError as error:
            raise ServiceError(Code.INVALID_ARGUMENT, str(error)) from None
        steps = self._model.steps(ids, sampling)
        is_last = False
        while not is_last:
            step = await run(self._worker, next, steps)
            if step is not None:
                is_last = step.is_last
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


def _finish_reason(step: Step) -> FinishReason:
    if not step.is_last:
        return FinishReason.FINISH_REASON_UNSPECIFIED
    return FinishReason.END_OF_TEXT if step.is_end_of_text else FinishReason.LENGTH
