"""An open-loop load: calls go out when they are due, whatever became of those before, and their time counts from then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from toolkit.errors import Code, ServiceError


@dataclass(frozen=True, slots=True)
class Sample:
    """One call. It keeps no exception, whose traceback would hold much for the garbage collector to look at."""

    due: float
    """When it had to go out, on the monotonic clock."""
    ended: float
    code: Code = Code.OK
    message: str = ""

    @property
    def latency(self) -> float:
        """Seconds since it was due: a generator that lags behind is not flattered."""
        return self.ended - self.due

    @property
    def is_ok(self) -> bool:
        return self.code == Code.OK

    @property
    def is_refused(self) -> bool:
        return self.code == Code.RESOURCE_EXHAUSTED


class Load:
    """Calls `rate` a second until stopped."""

    def __init__(self, call: Callable[[], Awaitable[object]], rate: float) -> None:
        self.samples: list[Sample] = []
        self._call = call
        self._rate = rate
        self._calls: set[asyncio.Task[None]] = set()
        self._pacing = asyncio.create_task(self._pace())

    async def stop(self) -> Sequence[Sample]:
        """Send no more, and wait for what is under way."""
        self._pacing.cancel()
        await asyncio.wait([self._pacing])
        if self._calls:
            await asyncio.wait(self._calls)
        return self.samples

    async def _pace(self) -> None:
        due = time.monotonic()
        while True:
            due += 1 / self._rate
            await asyncio.sleep(max(0, due - time.monotonic()))
            task = asyncio.create_task(self._one(due))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _one(self, due: float) -> None:
        try:
            await self._call()
        except ServiceError as error:
            self.samples.append(Sample(due, time.monotonic(), error.code, str(error)))
        else:
            self.samples.append(Sample(due, time.monotonic()))


async def run_load(call: Callable[[], Awaitable[object]], rate: float, seconds: float) -> Sequence[Sample]:
    load = Load(call, rate)
    await asyncio.sleep(seconds)
    return await load.stop()


def quantile(values: Iterable[float], part: float) -> float:
    """0.0 of nothing."""
    found = sorted(values)
    return found[min(len(found) - 1, int(part * len(found)))] if found else 0.0


def failures(samples: Iterable[Sample]) -> list[str]:
    """What was said, each once."""
    return sorted({sample.message for sample in samples if not sample.is_ok})
