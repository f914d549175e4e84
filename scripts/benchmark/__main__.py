"""Each case compares two ways to do the same work, in turns, and reports their ratio; or it measures what has a limit of its own.

The exit code is 1 when one misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from scripts.benchmark import batches, calls, codecs, generation, starts, streams, tensors
from scripts.benchmark.case import Case, Outcome

_MODULES = (calls, codecs, streams, tensors, batches, generation, starts)
CASES: dict[str, Case] = {case.name: case for module in _MODULES for case in module.CASES}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog="cases:\n" + "".join(f"  {name:22} {case.what}\n" for name, case in CASES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="*", metavar="CASE", help="some of those below; none means all")
    parser.add_argument("--json", action="store_true", help='one object a line: {"case", "ratio", "target", "met", …}')
    options = parser.parse_args()
    unknown = [name for name in options.case if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    met = True
    for name in options.case or CASES:
        outcome = asyncio.run(CASES[name].run())
        met = met and outcome.met
        sys.stdout.write((json.dumps(outcome.as_json()) if options.json else text(outcome)) + "\n")
        sys.stdout.flush()
    return 0 if met else 1


def text(outcome: Outcome) -> str:
    measured = ", ".join(f"{key} {value:g}" for key, value in outcome.measured.items())
    return (
        f"{outcome.case:18} {outcome.ratio:8.3f}  {outcome.target:9} {'ok' if outcome.met else 'MISSED':7} {measured}"
    )


if __name__ == "__main__":
    sys.exit(main())
