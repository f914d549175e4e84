"""More calls than a deployment can answer: it answers as many as it can, and refuses the others at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from scripts.chaos_cases.case import Case, Row, say
from scripts.chaos_cases.fleet import Process, fleet, handle
from scripts.chaos_cases.load import Sample, quantile, run_load
from services.echo.v1.echo_toolkit import Note

REPLICAS: Final = 3
CONCURRENCY: Final = 4
SECONDS: Final = 0.1
"""What a call takes; it waits as for an accelerator."""
CAPACITY: Final = REPLICAS * CONCURRENCY / SECONDS
DEADLINE: Final = 1.0
LASTS: Final = 8.0
SETTLES: Final = 1.0
"""Seconds of an overload that are not counted."""
NORMAL: Final = 0.5 * CAPACITY
MIB: Final = 1 << 20


async def overload() -> AsyncIterator[Row]:
    """2, 5 and 10 times the calls that 3 replicas can answer: what is answered, refused, held, and how it is afterwards."""
    async with fleet() as found:
        replicas = await found.start("leaf", "Leaf", args={"seconds": SECONDS}, max_concurrency=CONCURRENCY)
        async with handle(replicas) as (echo, _):

            async def call() -> None:
                await echo.say(Note(), timeout=DEADLINE)

            usual = quantile((each.latency for each in await run_load(call, NORMAL, 3)), 0.99)
            held = await warm_up(call, replicas)
            for times in (2, 5, 10):
                say(f"overload: {times * CAPACITY:g} calls a second, where {CAPACITY:g} can be answered")
                start = time.monotonic()
                samples = await run_load(call, times * CAPACITY, LASTS)
                ended = time.monotonic()
                for row in during(f"{times}x", samples, start):
                    yield row
                yield after(f"{times}x", await run_load(call, NORMAL, 4), ended, usual)
            grown = max(now - before for now, before in zip(rss(replicas), held, strict=True)) / MIB
            yield Row("overload", "memory that a replica has gained", grown, "<=", 8, "MiB", {"of": max(held) / MIB})


async def warm_up(call: object, replicas: Sequence[Process]) -> list[int]:
    """Memory once the paths of a refusal are in memory too."""
    await run_load(call, 2 * CAPACITY, 2)  # type: ignore[arg-type]  # the closure above
    await asyncio.sleep(0.5)
    return rss(replicas)


def rss(replicas: Sequence[Process]) -> list[int]:
    return [replica.rss for replica in replicas]


def during(times: str, samples: Sequence[Sample], start: float) -> list[Row]:
    window = LASTS - SETTLES
    good = [each for each in samples if each.is_ok and SETTLES <= each.ended - start < LASTS]
    refused = [each.latency for each in samples if each.is_refused and each.due - start >= SETTLES]
    others = [each for each in samples if not each.is_ok and not each.is_refused]
    latencies = [each.latency for each in good]
    answered = {"per_s": len(good) / window, "p99_ms": 1e3 * quantile(latencies, 0.99), "other_errors": len(others)}
    told = {"refused": len(refused), "p50_ms": 1e3 * quantile(refused, 0.5), "worst_ms": 1e3 * max(refused, default=0)}
    return [
        Row("overload", f"{times}: answered, of capacity", len(good) / window / CAPACITY, ">=", 0.9, "", answered),
        Row("overload", f"{times}: 99th percentile of refusals", 1e3 * quantile(refused, 0.99), "<=", 10, "ms", told),
    ]


def after(times: str, samples: Sequence[Sample], ended: float, usual: float) -> Row:
    """How long it took until no call failed or was slow any more."""
    odd = [each.due - ended for each in samples if not each.is_ok or each.latency > max(1.5 * usual, SECONDS * 2)]
    return Row("overload", f"{times}: back to normal after", max(odd, default=0.0), "<=", 2, "s", {"odd": len(odd)})


CASES = (Case("overload", overload),)
