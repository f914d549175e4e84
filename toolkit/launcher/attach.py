"""The other terminals: what a verb asks of a graph that runs elsewhere, and how the answer is shown."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.errors import NotRunningError
from toolkit.launcher.desk import ask
from toolkit.launcher.output import PlainView
from toolkit.launcher.record import incarnation, is_of, read_record
from toolkit.launcher.state import Run, is_locked, open_for_errors, read_run, state_folder

COLUMNS = ("NAME", "STATE", "DEVICE", "PID", "MEMORY", "UPTIME", "RESTARTS", "CALLS", "QUEUED", "ADDRESS")
_LOOK_AGAIN = 0.02
_SAID = "up.err"
_PAGE = os.sysconf("SC_PAGE_SIZE")


def read_rows(socket: str) -> list[dict[str, Any]]:
    """A row a replica, the memory that its process holds included."""
    rows: list[dict[str, Any]] = ask(socket, {"do": "ps"})["replicas"]
    return [{**row, "memory": _memory(row.get("pid"))} for row in rows]


def render_table(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    table = [COLUMNS, *map(_cells, rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(COLUMNS))]
    for row in table:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    memory, uptime, deployments = row.get("memory"), row.get("uptime"), row["deployments"]
    return (
        f"{row['name']} ({', '.join(deployments)})" if len(deployments) > 1 else row["name"],
        row["state"],
        row.get("device", "-"),
        str(row.get("pid", "-")),
        "-" if memory is None else f"{memory / 2**20:.0f} MiB",
        "-" if uptime is None else _duration(uptime),
        str(row.get("restarts", "-")),
        str(row.get("running", "-")),
        str(row.get("queued", "-")),
        ", ".join(each for each in row.get("addresses", ()) if not each.startswith("unix:")) or "-",
    )


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds:.0f}s"


def _memory(pid: object) -> int | None:
    """Bytes that it holds alone or shares."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None


def has_said(folder: Path, name: str) -> bool:
    """Whether a replica or a deployment of this name is in the record by now."""
    found = ((str(said.get("replica", "")), said.get("deployments", ())) for said in read_record(folder))
    return any(is_of(replica, [name], deployments) for replica, deployments in found if replica)


def show_logs(
    folder: Path,
    view: PlainView,
    names: Sequence[str],
    *,
    follow: bool,
    since: float | None,
    previous: bool,
) -> None:
    """Print what the graph said. `previous`: what those said that were replaced; `since` is a point in time."""
    found = read_record(folder, is_growing=lambda: follow and is_locked(folder), pause=time.sleep)
    for said in _before(list(found)) if previous else found:
        replica, text = str(said.get("replica", "")), str(said.get("text", ""))
        if since is not None and said.get("t", 0) < since:
            continue
        if replica and is_of(replica, names, said.get("deployments", ())):
            view.line(replica, text)
        elif not replica and not names and not previous:
            view.say(text)


def _before(lines: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What each replica said that the newest in its place came after."""
    newest: dict[str, int] = {}
    for said in lines:
        place, number = incarnation(str(said.get("replica")))
        newest[place] = max(number, newest.get(place, 1))
    for said in lines:
        place, number = incarnation(str(said.get("replica")))
        if number == newest[place] - 1:
            yield said


def start_detached(graph_file: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Run `toolkit ARGUMENTS` on its own, and return once it takes requests: 0 and its socket. If it ends before, its exit
    code and what it said. Raises ConflictError where the graph's folder cannot be written.
    """
    folder = state_folder(graph_file, environ)
    with open_for_errors(graph_file, environ, _SAID) as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "toolkit", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )
    while process.poll() is None:
        run = read_run(folder)
        if run is not None and run.pid == process.pid:
            return 0, run.socket
        time.sleep(_LOOK_AGAIN)
    return process.returncode, read_said(graph_file, environ)


def read_said(graph_file: Path, environ: Mapping[str, str]) -> str:
    """What went wrong with the graph that was started on its own."""
    return (state_folder(graph_file, environ) / _SAID).read_text(errors="backslashreplace")


def take_down(run: Run, folder: Path) -> int:
    """Ask a graph to drain, and wait for its end. Returns the exit code that its launcher says."""
    try:
        code = int(ask(run.socket, {"do": "down"})["code"])
    except NotRunningError:
        code = 0
        if is_locked(folder):  # its socket was taken away; the lock says that the process is the one
            os.kill(run.pid, signal.SIGTERM)
    wait_down(folder)
    return code


def wait_down(folder: Path, pause: Callable[[float], None] = time.sleep) -> None:
    """Return once nobody runs the graph any more."""
    while is_locked(folder):
        pause(_LOOK_AGAIN)
