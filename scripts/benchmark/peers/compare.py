"""The same work through ours, BentoML and Ray Serve: each in processes and an environment of its own."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from scripts.benchmark.case import Case
from scripts.benchmark.peers.environments import UnavailableError, say
from scripts.benchmark.peers.machine import Machine
from scripts.benchmark.peers.report import Comparison, Row
from scripts.benchmark.peers.systems import SYSTEMS, System
from scripts.benchmark.peers.work import WORKS, Found

ROUNDS: Final = 2
SESSION_LIMIT: Final = 180.0
RUN_LIMIT: Final = 570.0
"""Seconds for everything, once the environments are made."""


@dataclass(slots=True)
class Tally:
    """What one system did in all rounds so far."""

    system: System
    found: dict[str, Found] = field(default_factory=dict)
    reason: str = ""
    """Why something is missing."""

    def rows(self) -> list[Row]:
        title = self.system.title
        return [Row.of(work.name, title, self.found.get(work.name), self.reason) for work in WORKS]


async def compare() -> Comparison:
    """A front service that calls a back service: ours, BentoML and Ray Serve side by side, into docs/benchmarks.md."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # so that nothing stays behind
    tallies = [Tally(system) for system in SYSTEMS]
    machine = Machine.here()
    for tally in tallies:
        await _kept(tally, _prepare(tally))
    left = _countdown(RUN_LIMIT)
    for number in range(ROUNDS):
        for tally in tallies if number % 2 == 0 else tallies[::-1]:  # so that none has always the calmer moment
            say(f"round {number + 1} of {ROUNDS}: {tally.system.title}")
            await _kept(tally, _session(tally, left))
    by_work = [row for work in WORKS for tally in tallies for row in tally.rows() if row.work == work.name]
    found = Comparison(by_work, machine.after())
    if machine.was_busy:
        say(f"docs/benchmarks.md stays as it is: the machine was busy before (load average {machine.load_before:g})")
    else:
        found.write()
    return found


async def _prepare(tally: Tally) -> None:
    await tally.system.prepare()


async def _session(tally: Tally, left: Callable[[], float]) -> None:
    """One round of one system: start it, all works, stop it."""
    python = await tally.system.prepare()
    async with asyncio.timeout(min(SESSION_LIMIT, left())), tally.system.start(python) as ask:
        for work in WORKS:
            found = await ask(work)
            tally.found.setdefault(work.name, Found()).add(found)


async def _kept(tally: Tally, step: Any) -> None:
    """Whatever goes wrong with one system is a line of the table, and the others go on."""
    try:
        await step
    except UnavailableError as error:
        tally.reason = str(error)
    except TimeoutError:
        tally.reason = "it was not done in time"
    except Exception as error:  # of whatever kind the system's front has
        tally.reason = f"{type(error).__name__}: {error}"
    else:
        return
    say(f"{tally.system.title}: {tally.reason}")


def _countdown(seconds: float) -> Callable[[], float]:
    until = time.monotonic() + seconds
    return lambda: max(0.0, until - time.monotonic())


CASES: Final = (Case("peers", compare, only_named=True),)
