"""What a case is, and how two ways are timed fairly on a machine that others use too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Outcome:
    case: str
    ratio: float
    bound: Literal["<=", ">="]
    limit: float
    measured: Mapping[str, float]

    @property
    def target(self) -> str:
        return f"{self.bound} {self.limit:g}"

    @property
    def met(self) -> bool:
        return self.ratio <= self.limit if self.bound == "<=" else self.ratio >= self.limit

    def as_json(self) -> dict[str, Any]:
        rounded = {key: round(value, 3) for key, value in self.measured.items()}
        return {"case": self.case, "ratio": round(self.ratio, 4), "target": self.target, "met": self.met, **rounded}

    def as_text(self) -> str:
        measured = ", ".join(f"{key} {value:g}" for key, value in self.measured.items())
        return f"{self.case:18} {self.ratio:8.3f}  {self.target:9} {'ok' if self.met else 'MISSED':7} {measured}"


class Result(Protocol):
    """What a case finds: mostly an `Outcome`."""

    @property
    def met(self) -> bool: ...
    def as_json(self) -> dict[str, Any]: ...
    def as_text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    run: Callable[[], Coroutine[Any, Any, Result]]
    only_named: bool = False
    """Whether it runs only when it is asked for by name."""

    @property
    def what(self) -> str:
        """What it measures, in a line: how the docstring of `run` begins."""
        run = self.run.func if isinstance(self.run, partial) else self.run
        return (run.__doc__ or "").partition("\n")[0]


Work = Callable[[], Awaitable[Any]]


async def time_in_turns(first: Work, second: Work, *, rounds: int, calls: int) -> tuple[list[float], list[float]]:
    """Median seconds of a call in each round: `calls` of one, then `calls` of the other, so that both see the same noise."""
    medians: tuple[list[float], list[float]] = ([], [])
    for each in (first, second):
        await timed(each, calls)  # warm up
    for _ in range(rounds):
        for work, found in zip((first, second), medians, strict=True):
            found.append(statistics.median(await timed(work, calls)))
    return medians


def ratio(first: list[float], second: list[float]) -> float:
    """The median of the rounds' ratios: what disturbs a whole round disturbs both sides of it."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


async def timed(work: Work, calls: int) -> list[float]:
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        await work()
        found.append(time.perf_counter() - start)
    return found


def micros(timings: list[float]) -> float:
    """The median, in microseconds."""
    return statistics.median(timings) * 1e6
