"""Swarm runs the exported stack."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import yaml

from scripts.chaos_cases.case import Row
from scripts.deploy import project
from scripts.deploy.calls import caller, is_answered, outsiders
from scripts.deploy.commands import containers, docker, wait_until

UPDATED = 3.0
"""Seconds of load after the last of the old ones was told to go."""


async def run(folder: Path) -> AsyncIterator[Row]:
    """swarm: a stack deployed, called from outside, updated to new code under load, removed"""
    shop = folder / "shop"
    project.export(shop, "swarm", shop, *project.EXPOSED)
    await docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    began = time.monotonic()
    stack = _publishable(shop / "stack.yml")
    await docker("stack", "deploy", "--resolve-image", "never", "--compose-file", str(stack), "shop")
    await wait_until("all replicas are healthy", _complete, timeout=90)
    async with caller() as calls:
        await wait_until("the entry answers", lambda: is_answered(calls), timeout=30)
        seconds = time.monotonic() - began
        yield Row("swarm", "calls from outside that failed", await outsiders(), "<=", 0, "", {"up_s": seconds})
        async with calls.load():
            await asyncio.sleep(1)
            began = time.monotonic()
            await docker("service", "update", "--detach", f"--image={project.IMAGE}:2", "shop_leaf")
            await wait_until("all leaves run the new image", _updated, timeout=120)
            seconds = time.monotonic() - began
            await asyncio.sleep(UPDATED)
            calls.versions.clear()
            await calls.leaves_of(20)
        figures = {"calls": calls.calls, "worst_s": calls.worst, "update_s": seconds}
        yield Row("swarm", "failed calls during a rolling update", calls.failed, "<=", 0, "", figures)
        yield Row("swarm", "calls that old code answers afterwards", calls.versions[1], "<=", 0)
    await docker("stack", "rm", "shop")
    await wait_until("all containers are gone", _gone, timeout=90)
    left = len((await docker("service", "ls", "--quiet")).split())
    await docker("swarm", "leave", "--force")
    yield Row("swarm", "services left", left, "<=", 0)


def _publishable(stack: Path) -> Path:
    """As it was exported where this kernel can do it: a port of all nodes needs IPVS."""
    if Path("/proc/net/ip_vs").exists():
        return stack
    sys.stderr.write("         no IPVS in this kernel: the port is this node's alone\n")
    said = yaml.safe_load(stack.read_text())
    for service in said["services"].values():
        for port in service.get("ports", ()):
            port["mode"] = "host"
    changed = stack.with_name("stack.host.yml")
    changed.write_text(yaml.safe_dump(said))
    return changed


async def _complete() -> bool:
    counts = (await docker("service", "ls", "--format", "{{.Replicas}}")).split()
    return all(each.partition("/")[0] == each.partition("/")[2] for each in counts)


async def _updated() -> bool:
    """Every leaf runs the new image, and no old one is left."""
    images = [each["Config"]["Image"] for each in await containers("name=shop_leaf")]
    return images == [f"{project.IMAGE}:2"] * project.LEAVES and await _complete()


async def _gone() -> bool:
    return not (await docker("ps", "--quiet")).split()
