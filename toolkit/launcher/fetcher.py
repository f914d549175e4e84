"""`toolkit fetch`: what the services of a graph need is on this machine before `up` wants it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Graph
from toolkit.launcher.output import Row, View

COMMAND = (sys.executable, "-m", "toolkit.fetch")


def fetch_all(graph: Graph, names: Sequence[str], view: View, environ: Mapping[str, str]) -> bool:
    """Have each of these deployments fetch, and show how far it is. False where one could not."""
    classes = {name: each for name in names if (each := graph.services[name]).service}
    wanted = {name: {"class": each.service, "args": dict(each.args)} for name, each in classes.items()}
    process = subprocess.Popen(
        COMMAND,
        cwd=project_folder(graph.path),
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    left, is_well = dict(wanted), True
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(wanted))
        process.stdin.close()
        for line in process.stdout:
            said = json.loads(line)
            if "phase" not in said:
                left.pop(said["deployment"], None)
            is_well = _show(view, said) and is_well
    if left:
        raise ToolkitError(
            f"fetching ended with exit code {process.returncode} and without {', '.join(left)}; see above"
        )
    return is_well


def _show(view: View, said: Mapping[str, Any]) -> bool:
    match said:
        case {"deployment": str(name), "error": str(error)}:
            view.complain(f"{name}: {error}")
            return False
        case {"deployment": str(name), "end": "nothing"}:
            view.show(name, Row(state="nothing to fetch"))
        case {"deployment": str(name), "end": _}:
            view.show(name, Row(state="fetched"))
        case {"deployment": str(name), "phase": str(phase), "done": done, "total": total}:
            view.show(name, Row(state="loading", phase=phase, done=done or 0, total=total))
    return True
