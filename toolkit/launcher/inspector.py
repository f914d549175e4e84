"""Asks a short-lived process what the classes of a graph declare, so that the launcher never imports them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.errors import GraphError
from toolkit.launcher.edges import Description, find_problems
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Graph

COMMAND = (sys.executable, "-m", "toolkit.inspect")
TIMEOUT = 300.0
"""Seconds; importing torch and the like from a cold disk takes its time."""


def check_edges(graph: Graph, *, command: Sequence[str] = COMMAND) -> dict[str, Description]:
    """What each deployment declares. Raises GraphError for every class that cannot be imported and every wrong edge."""
    answers = dict(_ask(graph, command))
    problems = [
        f"{graph.where('services', name, 'class')}: {answers[name]}"
        for name in graph.services
        if not isinstance(answers.get(name), Description)
    ]
    descriptions = {name: answer for name, answer in answers.items() if isinstance(answer, Description)}
    problems += find_problems(graph, descriptions)
    if problems:
        raise GraphError("\n".join(problems))
    return descriptions


def _ask(graph: Graph, command: Sequence[str]) -> Iterator[tuple[str, Description | str]]:
    """Deployment → its description, or the sentence that says why there is none."""
    classes = {name: deployment.service for name, deployment in graph.services.items() if not deployment.command}
    yield from ((name, Description("", {})) for name in graph.services if name not in classes)
    try:
        done = subprocess.run(
            command,
            cwd=project_folder(graph.path),
            input=json.dumps(classes),
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GraphError(f"{graph.path}: its classes are not imported after {TIMEOUT:g} s") from None
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    yield from ((name, f"importing it ended its process: {last}") for name in classes)
    for line in done.stdout.splitlines():
        answer = _parse(line)
        if answer.get("deployment") in classes:
            yield answer["deployment"], _read(answer)


def _parse(line: str) -> Mapping[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _read(answer: Mapping[str, Any]) -> Description | str:
    match answer:
        case {"contract": str(contract), "handles": dict(handles), "batched": dict(batched)}:
            return Description(contract, handles, batched)
        case {"error": str(error)}:
            return error
    return f"the inspector's answer cannot be read: {answer}"
