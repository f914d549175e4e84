"""Replicas that die, hang, restart, come and go under load. Nobody may notice."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from scripts.chaos_cases.case import Case, Row, say
from scripts.chaos_cases.fleet import fleet, handle
from scripts.chaos_cases.load import Load, Sample, failures, quantile
from services.echo.v1.echo_toolkit import EchoClient, Note
from toolkit.transport.pool import PoolTransport

RATE: Final = 100.0
DEADLINE: Final = 3.0
KILLS_FOR: Final = 60.0
KILL_EVERY: Final = 5.0
STOPPED_FOR: Final = 30.0
SCALE_RATE: Final = 300.0
"""Enough calls in two seconds for a share to be no accident."""
SCALE_WINDOW: Final = 2.0


def load_on(echo: EchoClient, rate: float = RATE) -> Load:
    return Load(lambda: echo.say(Note(), timeout=DEADLINE), rate)


def failed(case: str, samples: Sequence[Sample], pool: PoolTransport | None = None) -> Row:
    wrong = [sample for sample in samples if not sample.is_ok]
    for text in failures(samples):
        say(f"{case}: {text}")
    measured = {
        "calls": len(samples),
        "p50_ms": 1e3 * quantile((sample.latency for sample in samples), 0.5),
        "p99_ms": 1e3 * quantile((sample.latency for sample in samples), 0.99),
        "worst_ms": 1e3 * max(sample.latency for sample in samples),
    }
    if pool is not None:
        measured["retries"] = pool.budget.spent
    return Row(case, "failed calls", len(wrong), "<=", 0, "", measured)


async def kill() -> AsyncIterator[Row]:
    """One of 3 replicas is killed every 5 s, for 60 s at 100 calls a second, and started again."""
    async with fleet() as found:
        replicas = await found.start("leaf", "Leaf")
        async with handle(replicas) as (echo, pool):
            load = load_on(echo)
            end = time.monotonic() + KILLS_FOR
            for n in itertools.cycle(range(len(replicas))):
                await asyncio.sleep(KILL_EVERY)
                if time.monotonic() >= end:
                    break
                await replicas[n].kill()
                await replicas[n].start()
                say(f"kill: replica {n} was killed, and is back after {len(load.samples)} calls")
            yield failed("kill", await load.stop(), pool)


async def stop() -> AsyncIterator[Row]:
    """One of 3 replicas is stopped by SIGSTOP for 30 s at 100 calls a second with a deadline of 3 s."""
    async with fleet() as found:
        replicas = await found.start("leaf", "Leaf")
        async with handle(replicas) as (echo, pool):
            load = load_on(echo)
            await asyncio.sleep(2)
            replicas[0].signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            say("stop: replica 0 is stopped")
            await asyncio.sleep(STOPPED_FOR)
            replicas[0].signal(signal.SIGCONT)
            say("stop: it goes on")
            continued = {replica.address: replica.picked for replica in pool.replicas}[replicas[0].address]
            await asyncio.sleep(3)
            again = {replica.address: replica.picked for replica in pool.replicas}[replicas[0].address] - continued
            samples = await load.stop()
    yield failed("stop", samples, pool)
    slow = [sample.due - stopped_at for sample in samples if sample.latency > 0.5]
    measured = {"slow_calls": len(slow), "last_slow_s": max(slow, default=0.0), "calls_after": again}
    yield Row("stop", "worst call", max(sample.latency for sample in samples), "<=", 1.6, "s", measured)


async def restart() -> AsyncIterator[Row]:
    """Two deployments of 3 replicas, one behind the other, are restarted replica by replica at 100 calls a second."""
    async with fleet() as found:
        leaf = await found.start("leaf", "Leaf")
        front = await found.start("front", "Hop", below="leaf")
        codes = []
        async with handle(front, "front") as (echo, pool):
            load = load_on(echo)
            await asyncio.sleep(1)
            for n, replica in enumerate((*front, *leaf)):
                codes.append(await replica.stop())
                await replica.start()
                say(f"restart: replica {n + 1} of 6 is back after {len(load.samples)} calls")
            await asyncio.sleep(1)
            yield failed("restart", await load.stop(), pool)
    yield Row("restart", "replicas whose drain cut off calls", sum(map(bool, codes)), "<=", 0)


async def scale() -> AsyncIterator[Row]:
    """From 1 replica to 4 and back to 1 at 300 calls a second."""
    async with fleet() as found:
        first = (await found.start("leaf", "Leaf", replicas=1))[0]
        async with handle([first]) as (echo, pool):
            load = load_on(echo, SCALE_RATE)
            await asyncio.sleep(2)
            more = await found.start("more", "Leaf", replicas=3)
            pool.set_addresses([each.address for each in (first, *more)])
            before = {replica.address: replica.picked for replica in pool.replicas}
            await asyncio.sleep(SCALE_WINDOW)
            got = {replica.address: replica.picked - before[replica.address] for replica in pool.replicas}
            fair = sum(got.values()) / len(got)
            say(f"scale: with 4 replicas each got {', '.join(map(str, got.values()))} calls")
            share = min(got[each.address] for each in more) / fair
            pool.set_addresses([first.address])
            await asyncio.gather(*(each.stop() for each in more))
            say("scale: back to 1")
            await asyncio.sleep(2)
            yield failed("scale", await load.stop(), pool)
    yield Row("scale", "least share of a new replica within 2 s", share, ">=", 0.8, "", {"fair_calls": fair})


CASES = (Case("kill", kill), Case("stop", stop), Case("restart", restart), Case("scale", scale))
