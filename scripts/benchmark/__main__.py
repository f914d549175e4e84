"""Each case compares two ways to do the same work, in turns, and reports their ratio; or it measures what has a limit of its own.

The exit code is 1 when one misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from scripts.benchmark import batches, calls, codecs, generation, graphs, shared, starts, streams, tensors
from scripts.benchmark.case import Case
from scripts.benchmark.peers import compare

_MODULES = (calls, codecs, streams, tensors, batches, generation, starts, graphs, shared, compare)
CASES: dict[str, Case] = {case.name: case for module in _MODULES for case in module.CASES}
USUAL = [name for name, case in CASES.items() if not case.only_named]
ONLY_NAMED = """
`peers` runs only when it is named. It takes minutes, and the first time it installs BentoML and Ray Serve, each into
an environment of its own under ~/.cache/grpc-model-toolkit/peers (0.7 GB). Unless the machine is busy with something
else, it writes its tables to docs/benchmarks.md.
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog="cases:\n" + "".join(f"  {name:22} {case.what}\n" for name, case in CASES.items()) + ONLY_NAMED,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("case", nargs="*", metavar="CASE", help="some of those below; none means all usual ones")
    parser.add_argument("--json", action="store_true", help='one object a line: {"case", "ratio", "target", "met", …}')
    options = parser.parse_args()
    unknown = [name for name in options.case if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    met = True
    for name in options.case or USUAL:
        outcome = asyncio.run(CASES[name].run())
        met = met and outcome.met
        sys.stdout.write((json.dumps(outcome.as_json()) if options.json else outcome.as_text()) + "\n")
        sys.stdout.flush()
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
