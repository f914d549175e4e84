"""What the examples' demos share: a graph comes up on a port of its own, is asked, and goes down again."""

from __future__ import annotations

import asyncio
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable

from toolkit.errors import ServiceError, ToolkitError
from toolkit.testing import graph_in_processes as running

__all__ = ["main", "run", "running"]


def main(demo: Callable[[], Awaitable[None]], about: str | None) -> int:
    """Run a demo that takes no arguments; `about` is what `--help` says first, the module's docstring."""
    call, _, what = (about or "").partition(": ")
    ArgumentParser(prog=call.strip("`") or None, description=what).parse_args()
    return run(demo)


def run(demo: Callable[[], Awaitable[None]]) -> int:
    """Run a demo to its end. Exit code 0 after an answer, 1 without one, 130 when interrupted."""
    try:
        asyncio.run(_interruptible(demo))
    except (ToolkitError, ServiceError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except asyncio.CancelledError:
        return 130
    return 0


async def _interruptible(demo: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await demo()
