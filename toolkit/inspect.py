"""The inspector: a short-lived process that imports service classes and tells their contracts and handles.

In: one JSON object, deployment → `module:Class`, on standard input. Out: one JSON object a line and deployment, either
{"deployment", "contract", "handles", "batched"} or {"deployment", "error"}. So the launcher never imports user code.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from toolkit.answering import answers
from toolkit.batching import batched_methods
from toolkit.errors import StartError
from toolkit.load import load_service
from toolkit.service import Service, dependencies


def describe(service: type[Service]) -> dict[str, Any]:
    """A class's contract, its handles (name → contract) and its batched methods (name in the class → in the .proto)."""
    names = {method.attribute: method.name for method in service.__contract__.methods}
    handles = {name: client.__contract__.name for name, client in dependencies(service).items()}
    batched = {attribute: names[attribute] for attribute in batched_methods(service)}
    return {"contract": service.__contract__.name, "handles": handles, "batched": batched}


def inspect(deployment: str, reference: str) -> dict[str, Any]:
    try:
        return {"deployment": deployment, **describe(load_service(reference))}
    except StartError as error:
        return {"deployment": deployment, "error": str(error)}


def main() -> None:
    out = answers()
    for deployment, reference in json.load(sys.stdin).items():
        out.write(json.dumps(inspect(deployment, reference)) + "\n")
        out.flush()  # the next class may end the process
    os._exit(0)  # whatever threads the classes have started


if __name__ == "__main__":
    main()
