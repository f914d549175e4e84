"""What it costs to begin: no comparison, so what is reported as the ratio is the value itself."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Final

from scripts.benchmark.case import Case, Outcome

ROUNDS: Final = 9
HEAVY: Final = ("grpc", "numpy", "torch")
_COUNT: Final = f"""
import json, sys
import toolkit.launcher.supervisor
heavy = sum(name.partition(".")[0] in {HEAVY} for name in sys.modules)
print(json.dumps({{"heavy": heavy, "modules": len(sys.modules)}}))
"""


async def cli_help() -> Outcome:
    """Seconds that `toolkit --help` takes, the median of a few."""
    await _python("-m", "toolkit", "--help")  # warm up: the first one reads the files
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await _python("-m", "toolkit", "--help")
        seconds.append(time.perf_counter() - start)
    measured = {"fastest_s": min(seconds), "slowest_s": max(seconds)}
    return Outcome("cli-help", statistics.median(seconds), "<=", 0.25, measured)


async def supervisor_imports() -> Outcome:
    """Modules of grpc, numpy and torch that the launcher's process holds."""
    found = json.loads(await _python("-c", _COUNT))
    return Outcome("supervisor-imports", found["heavy"], "<=", 0, {"modules": found["modules"]})


async def _python(*arguments: str) -> bytes:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {process.returncode}")
    return out


CASES = (Case("cli-help", cli_help), Case("supervisor-imports", supervisor_imports))
