"""docker-compose runs the exported file."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from scripts.chaos_cases.case import Row
from scripts.deploy import project
from scripts.deploy.calls import Caller, caller, outsiders
from scripts.deploy.commands import containers, docker, wait_until
from scripts.deploy.commands import run as run_command

SCALED = 5
SHRUNK = 2
SETTLED = 1.0
"""Seconds of load before and after."""


async def run(folder: Path) -> AsyncIterator[Row]:
    """compose: up, called from outside, a container killed, scaled up and down, taken down"""
    shop = folder / "shop"
    project.export(shop, "compose", shop)
    tool = _tool()
    await _compose(shop, *tool, "build")
    began = time.monotonic()
    await _compose(shop, *tool, "up", "--detach")
    await wait_until("all are healthy", lambda: _healthy(project.LEAVES + 1), timeout=60)
    yield Row("compose", "up until all are healthy", time.monotonic() - began, "<=", 20, "s")
    limits = [each["HostConfig"]["Memory"] for each in await containers("name=leaf")]
    yield Row("compose", "containers with their limit of memory", limits.count(project.MEMORY), ">=", project.LEAVES)
    yield Row("compose", "calls from outside that failed", await outsiders(), "<=", 0)
    async with caller() as calls:
        async with calls.load():
            await asyncio.sleep(SETTLED)
            back = await _kill_one(calls)
        yield _failed("with a container killed", calls, back_after_s=back)
        async with calls.load():
            await asyncio.sleep(SETTLED)
            await _compose(shop, *tool, "up", "--detach", "--no-build", "--no-recreate", "--scale", f"leaf={SCALED}")
            seconds = await _wait_leaves(calls, SCALED)
        yield _failed("while scaled up", calls, all_answer_after_s=seconds)
        shares = (await calls.leaves_of(40 * SCALED)).values()
        yield Row("compose", "least part of a fair share, scaled up", min(shares) / 40, ">=", 0.5)
        async with calls.load():
            await asyncio.sleep(SETTLED)
            await _compose(shop, *tool, "up", "--detach", "--no-build", "--no-recreate", "--scale", f"leaf={SHRUNK}")
            await asyncio.sleep(SETTLED)
        yield _failed("while scaled down", calls)
    began = time.monotonic()
    await _compose(shop, *tool, "down")
    seconds = time.monotonic() - began
    left = len((await docker("ps", "--all", "--quiet")).split()) + await _networks()
    yield Row("compose", "containers and networks left", left, "<=", 0, "", {"down_s": seconds})


def _failed(when: str, calls: Caller, **measured: float) -> Row:
    figures = {"calls": calls.calls, "worst_s": calls.worst, **measured}
    return Row("compose", f"failed calls {when}", calls.failed, "<=", 0, "", figures)


def _tool() -> tuple[str, ...]:
    return ("docker-compose",) if shutil.which("docker-compose") else ("docker", "compose")


async def _compose(folder: Path, *words: str) -> None:
    await run_command(*words, folder=folder, env={**os.environ, **project.BUILD}, timeout=90)


async def _healthy(number: int) -> bool:
    return [each["State"].get("Health", {}).get("Status") for each in await containers()] == ["healthy"] * number


async def _kill_one(calls: Caller) -> float:
    """The process, as a crash would: what the engine itself is told to kill stays down. Seconds until it is back."""
    victim: dict[str, Any] = next(each for each in await containers() if "leaf" in each["Name"])
    os.kill(victim["State"]["Pid"], signal.SIGKILL)

    async def is_back() -> bool:
        found = json.loads(await docker("inspect", victim["Id"]))[0]["State"]
        return found["Pid"] not in (0, victim["State"]["Pid"]) and found["Health"]["Status"] == "healthy"

    healthy = await wait_until("the killed container is back", is_back, timeout=60)
    host = victim["Config"]["Hostname"]
    calls.leaves.clear()
    return healthy + await wait_until("it is called again", lambda: _answers(calls, host), timeout=30)


async def _answers(calls: Caller, host: str) -> bool:
    return host in calls.leaves


async def _wait_leaves(calls: Caller, number: int) -> float:
    calls.leaves.clear()

    async def all_answer() -> bool:
        return len(calls.leaves) >= number

    return await wait_until(f"{number} leaves answer", all_answer, timeout=40)


async def _networks() -> int:
    names = (await docker("network", "ls", "--format", "{{.Name}}")).split()
    return len({*names} - {"bridge", "host", "none"})
