"""Commands of others, each with a limit of time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

POLL = 0.25
Condition = Callable[[], Awaitable[object]]


class StepError(Exception):
    """A step did not do what it had to. Its text is what the command said."""


def command(*words: str, timeout: float = 60, folder: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Its standard output. Raises StepError."""
    try:
        done = subprocess.run(
            words, timeout=timeout, cwd=folder, env=env, capture_output=True, text=True, errors="replace", check=False
        )
    except subprocess.TimeoutExpired:
        raise StepError(f"{' '.join(words)}: not done after {timeout:g} s") from None
    except OSError as error:
        raise StepError(f"{words[0]}: {error.strerror}") from None
    if done.returncode:
        raise StepError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


async def run(
    *words: str, timeout: float = 60, folder: Path | None = None, env: Mapping[str, str] | None = None
) -> str:
    return await asyncio.to_thread(command, *words, timeout=timeout, folder=folder, env=env)


async def docker(*words: str, timeout: float = 60, folder: Path | None = None) -> str:
    return await run("docker", *words, timeout=timeout, folder=folder)


async def containers(*filters: str) -> list[dict[str, Any]]:
    """Those that run, as `docker inspect` tells of them."""
    ids = (await docker("ps", "--quiet", "--no-trunc", *(f"--filter={each}" for each in filters))).split()
    try:
        return list(json.loads(await docker("inspect", *ids))) if ids else []
    except StepError:  # one of them has ended meanwhile
        return []


async def wait_until(what: str, condition: Condition, *, timeout: float) -> float:
    """Seconds until it was so. Raises StepError."""
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > timeout:
            raise StepError(f"not after {timeout:g} s: {what}")
        await asyncio.sleep(POLL)
    return time.monotonic() - began
