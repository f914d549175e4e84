"""`toolkit fetch`: what the services of a graph need is on this machine before `up` wants it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.launcher.captured import answers, asked
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Graph
from toolkit.launcher.output import Row, View

COMMAND = (sys.executable, "-m", "toolkit.fetch")
_FAILED = "failed"


def fetch_all(graph: Graph, names: Sequence[str], view: View, environ: Mapping[str, str]) -> bool:
    """Have each of these deployments fetch, and show how far it is. False where one could not."""
    classes = {name: each for name in names if (each := graph.services[name]).service}
    wanted = {name: {"class": each.service, "args": dict(each.args)} for name, each in classes.items()}
    left, ended = set(wanted), dict[str, Row]()
    with asked(COMMAND, project_folder(graph.path), wanted, environ=environ) as process:
        try:
            for said in answers(process):
                name, row = said["deployment"], _row(said)
                if "phase" not in said:
                    left.discard(name)
                    ended[name] = row
                view.show(name, row)
                if "error" in said:
                    view.complain(f"{name}: {said['error']}")
        finally:
            view.settle()
    for name, row in ended.items():
        view.show(name, row)  # where there was a table of them, it is gone
    if left:
        raise ToolkitError(
            f"fetching ended with exit code {process.returncode} and without {', '.join(sorted(left))}; see above"
        )
    return all(row.state != _FAILED for row in ended.values())


def _row(said: Mapping[str, Any]) -> Row:
    match said:
        case {"error": _}:
            return Row(state=_FAILED)
        case {"end": "nothing"}:
            return Row(state="nothing to fetch")
        case {"end": _}:
            return Row(state="fetched")
    return Row(state="loading", phase=said["phase"], done=said["done"] or 0, total=said["total"])
