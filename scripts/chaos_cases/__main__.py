"""Real processes on this machine are killed, stopped, restarted and overloaded while calls go on. Each row is a promise.

All cases together take less than ten minutes. The exit code is 1 when a row misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import sys
from collections.abc import Iterable

import uvloop

from scripts.chaos_cases import chain, cycles, guard, overload, replicas
from scripts.chaos_cases.case import Case, Row, say

CASES: dict[str, Case] = {
    case.name: case
    for case in (*replicas.CASES, *overload.CASES, *chain.CASES, *guard.CASES, cycles.case(cycles.DEFAULT))
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description=__doc__,
        epilog="cases:\n" + "".join(f"  {name:10} {case.what}\n" for name, case in CASES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="*", metavar="CASE", help="some of those below; none means all")
    parser.add_argument(
        "--json", action="store_true", help='one object a line: {"case", "what", "value", "target", "met", …}'
    )
    parser.add_argument(
        "--cycles", type=int, metavar="N", default=cycles.DEFAULT, help="of the case cycles; default: %(default)s"
    )
    options = parser.parse_args()
    CASES["cycles"] = cycles.case(options.cycles)
    unknown = [name for name in options.case if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    try:
        return uvloop.run(run(options.case or CASES, as_json=options.json))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


async def run(names: Iterable[str], *, as_json: bool) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    gc.freeze()
    met = True
    for name in names:
        say(f"{name}: {CASES[name].what}")
        async for row in CASES[name].run():
            met = met and row.met
            show(row, as_json=as_json)
    return 0 if met else 1


def show(row: Row, *, as_json: bool) -> None:
    sys.stdout.write((json.dumps(row.as_json()) if as_json else row.as_text()) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
