"""The work that each front service does, and how it times it: the same lines run in the processes of all that are compared.

The standard library alone, since the peers' environments hold nothing of ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

CALL_TIMEOUT: Final = 20.0
LIMIT: Final = 6.0
"""Seconds after which no call of a round begins."""
TEXT: Final = "a small message"


@dataclass(frozen=True, slots=True)
class Work:
    """`mib` 0 is the small call: a short text and a number there and back. Else a float32 tensor of that size, there and back."""

    name: str
    mib: int
    in_flight: int
    calls: int


WORKS: Final = (
    Work("A small call, 1 in flight", 0, 1, 1000),
    Work("A small call, 8 in flight", 0, 8, 2000),
    Work("A small call, 32 in flight", 0, 32, 2000),
    Work("A tensor of 1 MiB there and back, 1 in flight", 1, 1, 200),
    Work("A tensor of 16 MiB there and back, 1 in flight", 16, 1, 60),
    Work("A tensor of 64 MiB there and back, 1 in flight", 64, 1, 20),
)


@dataclass(slots=True)
class Found:
    """Seconds of each call that came back right, how often which error came instead, and how long all of it took."""

    timings: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: Found) -> None:
        self.timings += other.timings
        self.seconds += other.seconds
        for error, times in other.errors.items():
            self.fail(error, times)

    def fail(self, error: str, times: int = 1) -> None:
        self.errors[error] = self.errors.get(error, 0) + times


Call = Callable[[], Awaitable[bool]]
"""Calls the back service once; whether the reply is what was sent."""


async def run(work: dict[str, Any], small: Call, tensor: Callable[[int], Call]) -> dict[str, Any]:
    """What a front service does for a `Work`, both ways as JSON has it: some calls to warm up, then those that count."""
    asked = Work(**work)
    call = tensor(asked.mib) if asked.mib else small
    await measure(call, calls=max(asked.calls // 10, 5), in_flight=asked.in_flight)
    return asdict(await measure(call, calls=asked.calls, in_flight=asked.in_flight))


async def measure(call: Call, *, calls: int, in_flight: int, limit: float = LIMIT) -> Found:
    """Call `calls` times, `in_flight` at once, but begin none after `limit` seconds."""
    found = Found()
    turns = iter(range(calls))
    start = time.perf_counter()

    async def lane() -> None:
        for _ in turns:
            began = time.perf_counter()
            if began - start > limit:
                return
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    right = await call()
            except Exception as error:  # of whatever kind the system has
                found.fail(" ".join(f"{type(error).__name__}: {error}".split())[:200])
                continue
            if right:
                found.timings.append(time.perf_counter() - began)
            else:
                found.fail("the reply is not what was sent")

    await asyncio.gather(*(lane() for _ in range(in_flight)))
    found.seconds = time.perf_counter() - start
    return found
