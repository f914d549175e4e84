"""The inspector: a short-lived process that imports service classes and tells their contracts and handles.

In: one JSON object, deployment → {"class", "args"}, on standard input. Out: one JSON object a line and deployment, either
{"deployment", "contract", "handles", "batched"} or {"deployment", "key", "error"}, where `key` is what to correct: `class` or
`args`. So the launcher never imports user code.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from toolkit.answering import answers
from toolkit.batching import batched_methods
from toolkit.errors import StartError
from toolkit.load import constructor_arguments, load_service
from toolkit.service import Service, dependencies


def describe(service: type[Service]) -> dict[str, Any]:
    """A class's contract, its handles (name → contract) and its batched methods (name in the class → in the .proto)."""
    names = {method.attribute: method.name for method in service.__contract__.methods}
    handles = {name: client.__contract__.name for name, client in dependencies(service).items()}
    batched = {attribute: names[attribute] for attribute in batched_methods(service)}
    return {"contract": service.__contract__.name, "handles": handles, "batched": batched}


def inspect(deployment: str, reference: str, args: Mapping[str, Any]) -> dict[str, Any]:
    key = "class"
    try:
        service = load_service(reference)
        key = "args"
        constructor_arguments(service, args, "cpu")
    except StartError as error:
        return {"deployment": deployment, "key": key, "error": str(error)}
    return {"deployment": deployment, **describe(service)}


def main() -> None:
    out = answers()
    for deployment, said in json.load(sys.stdin).items():
        out.write(json.dumps(inspect(deployment, said["class"], said["args"])) + "\n")
        out.flush()  # the next class may end the process
    os._exit(0)  # whatever threads the classes have started


if __name__ == "__main__":
    main()
