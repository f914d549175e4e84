"""Asks a short-lived process what the classes of a graph declare, so that the launcher never imports them."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TextIO

from toolkit.errors import GraphError
from toolkit.launcher.captured import answers, asked
from toolkit.launcher.edges import Description, find_problems
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Graph
from toolkit.launcher.waiting import Report, busy

COMMAND = (sys.executable, "-m", "toolkit.inspect")
TIMEOUT = 300.0
"""Seconds; importing torch and the like from a cold disk takes its time."""


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why there is no description, and the key of the deployment that is to be corrected."""

    sentence: str
    key: str = "class"


def check_edges(
    graph: Graph, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, Description]:
    """What each deployment declares. Raises GraphError for every class that cannot be imported, every constructor that
    does not take its `args`, and every wrong edge.

    `stream`, if any, shows which class it imports, how many it has, and of how many.
    """
    with nullcontext(_tell_nobody) if stream is None else busy(str(graph.path), stream, environ) as report:
        found = dict(_ask(graph, report))
    problems = [
        f"{graph.where('services', name, each.key)}: {each.sentence}"
        for name in graph.services
        if isinstance(each := found[name], _Problem)
    ]
    descriptions = {name: each for name, each in found.items() if isinstance(each, Description)}
    problems += find_problems(graph, descriptions)
    if problems:
        raise GraphError("\n".join(problems))
    return descriptions


def _tell_nobody(phase: str, done: float = 0, total: float | None = None) -> None:
    pass


def _ask(graph: Graph, report: Report) -> Iterator[tuple[str, Description | _Problem]]:
    """Deployment → its description, or why there is none."""
    classes = {
        name: {"class": deployment.service, "args": deployment.args}
        for name, deployment in graph.services.items()
        if not deployment.command
    }
    yield from ((name, Description("", {})) for name in graph.services if name not in classes)
    found: dict[str, Description | _Problem] = {}

    def report_next() -> None:
        for name in [name for name in classes if name not in found][:1]:
            report(f"import {graph.services[name].service}", len(found), len(classes))

    with tempfile.TemporaryFile() as complaints:
        try:
            with asked(COMMAND, project_folder(graph.path), classes, complaints=complaints) as process:
                report_next()
                for answer in answers(process, TIMEOUT):
                    if answer.get("deployment") in classes:
                        found[answer["deployment"]] = _read(answer)
                        report_next()
        except TimeoutError:
            raise GraphError(
                f"{graph.path}: its classes are not imported after {TIMEOUT:g} s; load models in constructors, not in modules"
            ) from None
        complaints.seek(0)
        said = complaints.read().decode(errors="backslashreplace").strip().splitlines()
    last = (said or [f"exit code {process.returncode}"])[-1]
    yield from ((name, found.get(name, _Problem(f"importing it ended its process: {last}"))) for name in classes)


def _read(answer: Mapping[str, Any]) -> Description | _Problem:
    match answer:
        case {"contract": str(contract), "handles": dict(handles), "batched": dict(batched)}:
            return Description(contract, handles, batched)
        case {"error": str(error), "key": str(key)}:
            return _Problem(error, key)
    return _Problem(f"the inspector's answer cannot be read: {answer}")
