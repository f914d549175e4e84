"""A graph is exported, its image built, and what was exported run in a real engine while calls go on. Each row is a promise.

The engine is our own: its network, mounts and processes live in namespaces, and end with it. Nothing is downloaded in there.
The exit code is 1 when a row misses its target, and 0 where no engine can run, which is said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from scripts.chaos_cases.case import Row, say
from scripts.deploy import compose, engine, images, pods, swarm
from scripts.deploy.commands import StepError

TIME_LIMIT = 420.0
"""Seconds, in the engine. What comes before is bounded by itself, and is kept for the next time."""
CASES = {"compose": compose.run, "swarm": swarm.run, "pods": pods.run}


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test-deploy", description=__doc__)
    parser.add_argument("case", nargs="*", metavar="CASE", help=f"some of {', '.join(CASES)}; none means all")
    parser.add_argument(
        "--json", action="store_true", help='one object a line: {"case", "what", "value", "target", "met", …}'
    )
    parser.add_argument("--inside", metavar="DIR", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.case if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    try:
        if options.inside:
            return asyncio.run(inside(options.inside, options.case or CASES, as_json=options.json))
        return outside(sys.argv[1:])
    except engine.NoEngineError as reason:
        sys.stdout.write(f"skipped: {reason}\n")
        return 0
    except StepError as failure:
        sys.stdout.write(f"FAILED: {failure}\n")
        return 1


def outside(arguments: list[str]) -> int:
    """Make ready what needs the network, and go on in namespaces of our own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    engine.install()
    base = engine.base_image()
    wheels = images.wheels(base.python)
    with engine.own_folder() as folder:
        shutil.copy(base.archive, folder / "base.tar")
        shutil.copytree(wheels, folder / "wheels")
        ours = [sys.executable, "-m", "scripts.deploy", "--inside", str(folder), *arguments]
        command = [*engine.WITH_US, *engine.NAMESPACES, *ours]
        try:
            return subprocess.run(command, timeout=TIME_LIMIT, check=False).returncode
        except subprocess.TimeoutExpired:
            raise StepError(f"it was not done after {TIME_LIMIT:g} s") from None


async def inside(folder: Path, names: Iterable[str], *, as_json: bool) -> int:
    met = True
    async with engine.running(folder):
        async for row in rows(folder, names):
            met = met and row.met
            sys.stdout.write((json.dumps(row.as_json()) if as_json else row.as_text()) + "\n")
            sys.stdout.flush()
    return 0 if met else 1


async def rows(folder: Path, names: Iterable[str]) -> AsyncIterator[Row]:
    for case in (images.run, *(CASES[name] for name in names)):
        say((case.__doc__ or "").partition("\n")[0])
        async for row in case(folder):
            yield row


if __name__ == "__main__":
    sys.exit(main())
