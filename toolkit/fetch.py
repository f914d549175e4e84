"""A short-lived process that has each service class fetch what it needs beforehand: `toolkit fetch` asks it.

In: one JSON object, deployment → {"class", "args"}, on standard input. Out: JSON lines,
{"deployment", "phase", "done", "total"} while it
lasts, then {"deployment", "end": "fetched" | "nothing"} or {"deployment", "error"}. So the launcher never imports user code.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from inspect import signature
from typing import IO, Any

from toolkit.answering import answers
from toolkit.errors import ToolkitError
from toolkit.load import load_service, told
from toolkit.service import reporter

HOOK = "__fetch__"


def fetch(reference: str, args: Mapping[str, Any]) -> bool:
    """Call the class's `__fetch__` with those of `args` that it takes. False where it has none. Raises what it raises."""
    hook = getattr(load_service(reference), HOOK, None)
    if hook is None:
        return False
    hook(**{name: value for name, value in args.items() if name in signature(hook).parameters})
    return True


def main() -> None:
    out = answers()
    for deployment, said in json.load(sys.stdin).items():
        reporter.set(lambda phase, done, total, name=deployment: _tell(out, name, phase=phase, done=done, total=total))  # type: ignore[misc]
        try:
            fetched = fetch(said["class"], said["args"])
        except ToolkitError as error:
            _tell(out, deployment, error=str(error))
        except Exception as error:
            _tell(out, deployment, error=told(error))
        else:
            _tell(out, deployment, end="fetched" if fetched else "nothing")


def _tell(out: IO[str], deployment: str, **said: Any) -> None:
    out.write(json.dumps({"deployment": deployment, **said}) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
