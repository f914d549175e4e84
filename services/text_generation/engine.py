"""Several texts at once on one model: transformers' continuous batching, with a seed of its own for each text.

Each step of the model makes the next token of every text that is under way. A text joins at any step, and leaves when it
is complete or nobody reads it any more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Final, Self

import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import cb_logits_processors as choosing
from transformers.generation.continuous_batching.continuous_api import OutputRouter

from services.text_generation.sampling import Sampling, sample

logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)  # it tells each start and stop otherwise
STEP_TOKENS: Final = 256
"""Tokens that the model reads in one step: a long prompt takes several, so that the other texts go on between them."""
PAGE: Final = 64
"""Tokens that a text's place in memory grows by."""
Choose = Callable[[torch.Tensor], int]


class ModelFailedError(RuntimeError):
    """The model stopped in the middle of the text; the log says why."""


class Engine:
    """Continues texts on one model, in one thread beside the event loop, as long as it is entered.

    `max_batch` is how many texts take part in a step; those beyond wait for their turn, in order. `cache_tokens` is how many
    tokens of all texts are kept between steps. A text is the same whatever others run beside it, but for rounding: two tokens
    that are equally likely to six digits may change places.
    """

    def __init__(self, model: Any, ends: Collection[int], *, max_batch: int, cache_tokens: int) -> None:
        self._choices = _Choices()
        self._routes = _Routes()
        self._names = map(str, itertools.count())
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=sorted(ends) or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=-(-cache_tokens // PAGE),
                max_batch_tokens=max(STEP_TOKENS, max_batch),
                max_requests_per_batch=max_batch,
                allow_block_sharing=False,  # what a text becomes must not depend on those before it
                use_async_batching=False,  # a step's tokens are chosen before the next one begins
                use_cuda_graph=False,
                auto_switch_to_flash=False,  # it computes in half precision only, and may be downloaded for it
            ),
        )
        self._manager.logit_processor = self._choices.as_list()
        self._manager.output_router = self._routes

    async def __aenter__(self) -> Self:
        self._routes.loop = asyncio.get_running_loop()
        self._manager.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._manager.stop, hard_stop=True)

    async def tokens(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[int, None]:
        """The tokens that continue the prompt, each as soon as it is made; the last may be one that ends a text.

        Close it to stop early: the next step goes without this text. Raises ModelFailedError.
        """
        name = next(self._names)
        latest = self._routes.open(name)
        self._choices.open(name, sampling)
        is_finished = False
        said = 0
        try:
            self._submit(name, prompt, sampling)
            while not is_finished:
                output = await latest.changed()
                is_finished = output.is_finished()
                for token in output.generated_tokens[said:]:
                    yield token
                said = len(output.generated_tokens)
                if output.error is not None:
                    raise ModelFailedError(f"the model failed: {output.error}")
        finally:
            self._routes.close(name)
            self._choices.close(name)
            if not is_finished:
                self._manager.cancel_request(name)

    def _submit(self, name: str, prompt: Sequence[int], sampling: Sampling) -> None:
        if not self._manager.is_running():  # a failure has ended its thread: the next text may do better
            self._manager.start()
        taken = self._manager.add_request(
            list(prompt), request_id=name, max_new_tokens=sampling.max_new_tokens, streaming=True
        )
        if taken is None:
            raise ModelFailedError("the model has just failed, and takes no text before it has stopped")


class _Routes(OutputRouter):  # type: ignore[misc]  # transformers has no types
    """From the model's thread to the tasks that wait, and nowhere else: what nobody waits for any more is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, _Latest] = {}

    def open(self, name: str) -> _Latest:
        return self._waiting.setdefault(name, _Latest())

    def close(self, name: str) -> None:
        del self._waiting[name]

    def deliver(self, output: Any) -> None:
        self.deliver_batch([output])

    def deliver_batch(self, outputs: list[Any]) -> None:
        assert self.loop is not None, "entered before the thread starts"
        self.loop.call_soon_threadsafe(self._put, outputs)

    def _put(self, outputs: list[Any]) -> None:
        for output in outputs:
            if output.request_id in self._waiting:
                self._waiting[output.request_id].put(output)


class _Latest:
    """The latest output of one text. Each holds all of its tokens, so a slow reader needs no more than that."""

    def __init__(self) -> None:
        self._output: Any = None
        self._has_changed = asyncio.Event()

    def put(self, output: Any) -> None:
        self._output = output
        self._has_changed.set()

    async def changed(self) -> Any:
        """The output, once there is one that was not seen."""
        await self._has_changed.wait()
        self._has_changed.clear()
        return self._output


class _Choices(choosing.ContinuousBatchingLogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Chooses the next token of each text that asks for chance.

    transformers draws for a whole batch from one source, so that no seed would give a text again. Here each text has its
    own, and its choice is marked as the likeliest, which is what transformers then takes.
    """

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012  # the name and the kind are the base class's
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._choose: dict[str, Choose] = {}
        self._names: list[str] = []
        """The texts of the step under way that get a token, in the order of their scores."""

    def as_list(self) -> Any:
        found = choosing.ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self]))
        found.tensors_required = 1  # the least that it can be for a processor of this kind; not used
        return found

    def open(self, name: str, sampling: Sampling) -> None:
        if sampling.temperature > 0:
            random = torch.Generator().manual_seed(sampling.seed)
            self._choose[name] = lambda scores: sample(scores, sampling.temperature, sampling.top_p, random)

    def close(self, name: str) -> None:
        self._choose.pop(name, None)

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Nothing to fill: all that is needed comes with the step."""

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        self._names = [request.state.request_id for request in requests_with_new_token]
        return torch.zeros(len(self._names), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        for name, row in zip(
            self._names, scores, strict=False
        ):  # rows of unfinished prompts come last, and mean nothing
            if choose := self._choose.get(name):
                row[choose(row.cpu())] = torch.inf
        return scores
