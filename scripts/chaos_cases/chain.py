"""Four deployments in a row, of three replicas each: what the last one is asked, for how long, and when it hears to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import count, pairwise
from random import Random
from typing import Any, Final

from scripts.chaos_cases.case import Case, Row, say
from scripts.chaos_cases.fleet import Process, fleet, handle, merged, records
from scripts.chaos_cases.load import failures, quantile, run_load
from services.echo.v1.echo_toolkit import EchoClient, Note
from toolkit.errors import ServiceError

CALLS: Final = 1000
RATE: Final = 50.0
STORM: Final = 12.0
CANCEL_AFTER: Final = 0.05


async def storm() -> AsyncIterator[Row]:
    """The last of four deployments fails every call: how often it is asked in all, for each call."""
    async with fleet() as found:
        chain = await found.start_chain("Failing")
        async with handle(chain["a"], "a") as (echo, _):

            async def call() -> None:
                await echo.say(Note(), timeout=3)

            samples = await run_load(call, RATE, STORM)
        attempts = sum(record["attempts"] for record in await records(chain["leaf"]))
    say(f"storm: {', '.join(failures(samples))}")
    wrong = sum(each.is_ok for each in samples)
    yield Row(
        "storm", "attempts at the leaf for each call", attempts / len(samples), "<=", 1.2, "", {"calls": len(samples)}
    )
    yield Row("storm", "calls that did not fail", wrong, "<=", 0)


async def deadline() -> AsyncIterator[Row]:
    """1000 calls through four hops, of which many run out of time on the way."""
    random = Random(4)
    ends: dict[int, float] = {}
    numbers = count(1)
    async with fleet() as found:
        chain = await found.start_chain("Leaf")
        async with handle(chain["a"], "a") as (echo, _):

            async def call() -> None:
                number = next(numbers)
                timeout = random.uniform(0.02, 0.25)
                ends[number] = time.monotonic() + timeout
                await echo.say(Note(number=number, weight=random.uniform(0.01, 0.3)), timeout=timeout)

            samples = await run_load(call, RATE, CALLS / RATE)
            await asyncio.sleep(0.5)
        seen = {name: await records(replicas) for name, replicas in chain.items()}
    left = [merged(seen[name], "left") for name in chain]
    worked = merged(seen["leaf"], "worked_at")
    late = [at - ends[number] for number, at in worked.items()]
    ran_out = sum(not each.is_ok for each in samples)
    reached = {"calls": len(samples), "ran_out": ran_out, "at_leaf": len(left[-1])}
    yield Row("deadline", "hops that had more time than their caller", more_than_caller(left), "<=", 0, "", reached)
    yield Row(
        "deadline", "work at the leaf after the deadline", 1e3 * max(late), "<=", 50, "ms", {"worked": len(worked)}
    )


def more_than_caller(left: Sequence[Mapping[int, float]]) -> int:
    """`left` says for each hop what every call had when it came in."""
    return sum(below[number] > above[number] for above, below in pairwise(left) for number in below)


async def cancel() -> AsyncIterator[Row]:
    """1000 calls through four hops whose caller gives up after 50 ms."""
    given_up: dict[int, float] = {}
    numbers = count(1)
    async with fleet() as found:
        chain = await found.start_chain("Leaf")
        everybody = [process for replicas in chain.values() for process in replicas]
        async with handle(chain["a"], "a") as (echo, pool):
            await asyncio.gather(*(echo.say(Note(), timeout=5) for _ in range(100)))
            before = await tasks(everybody)

            async def call() -> None:
                await give_up(echo, next(numbers), given_up)

            samples = await run_load(call, RATE, CALLS / RATE)
            await asyncio.sleep(1)
            outstanding = sum(replica.outstanding for replica in pool.replicas) + pool.door.admission.running
        leaf = await records(chain["leaf"])
        after = await tasks(everybody)
        running = sum(record["running"] for record in await records(everybody))
    heard = merged(leaf, "cancelled_at")
    begun = merged(leaf, "left")
    late = [at - given_up[number] for number, at in heard.items()]
    measured = {
        "calls": len(samples),
        "at_leaf": len(begun),
        "p50_ms": 1e3 * quantile(late, 0.5),
        "worst_ms": 1e3 * max(late),
    }
    yield Row(
        "cancel", "99th percentile until the leaf is cancelled", 1e3 * quantile(late, 0.99), "<=", 50, "ms", measured
    )
    yield Row("cancel", "calls that were not cancelled at the leaf", len(begun) - len(heard), "<=", 0)
    leaked = outstanding + running + max(0, after - before)
    yield Row(
        "cancel", "calls, handlers and tasks left behind", leaked, "<=", 0, "", {"tasks": after, "before": before}
    )


async def give_up(echo: EchoClient, number: int, given_up: dict[int, float]) -> None:
    task = asyncio.create_task(echo.say(Note(number=number, weight=1.0), timeout=5))
    await asyncio.sleep(CANCEL_AFTER)
    given_up[number] = time.monotonic()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, ServiceError):
        await task


async def tasks(processes: Sequence[Process]) -> int:
    found: list[dict[str, Any]] = await records(processes)
    return sum(record["tasks"] for record in found)


CASES = (Case("storm", storm), Case("deadline", deadline), Case("cancel", cancel))
