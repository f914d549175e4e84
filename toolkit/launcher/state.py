"""What a graph leaves on disk while it is up, and after: who runs it, how to reach it, and what it said.

Each graph file has a folder of its own, for its user alone, under `XDG_STATE_HOME` or ~/.local/state. Whoever runs the graph
holds a lock there: the kernel lets go of it however the launcher ends, so nothing there can be stale.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from toolkit.errors import ConflictError, NotRunningError, RunningError

_HOME = "grpc-model-toolkit"
_LOCK, _RUN = "lock", "run.json"
_ROOM = 4096
"""Bytes that there must be room for: what goes wrong has to be written somewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A graph that is up."""

    pid: int
    name: str
    path: str
    """Of its graph file."""
    socket: str
    """Where its launcher takes requests."""


def state_home(environ: Mapping[str, str]) -> Path:
    said = Path(environ.get("XDG_STATE_HOME", ""))
    return (said if said.is_absolute() else Path.home() / ".local" / "state") / _HOME


def state_folder(graph_file: Path, environ: Mapping[str, str]) -> Path:
    path = graph_file.resolve()
    return state_home(environ) / f"{path.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


@contextlib.contextmanager
def claimed(graph_file: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """The graph's folder, this process being the one that runs it. Raises RunningError where another does, and ConflictError
    where the folder cannot be written.
    """
    folder = state_folder(graph_file, environ)
    with contextlib.ExitStack() as closing:
        with _told(folder):
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            folder.chmod(0o700)
            lock = closing.enter_context((folder / _LOCK).open("ab"))
            (folder / _RUN).unlink(missing_ok=True) if _try_lock(lock.fileno()) else _refuse(graph_file, folder)
            _find_room(folder)
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                (folder / _RUN).unlink(missing_ok=True)


def open_for_errors(graph_file: Path, environ: Mapping[str, str], name: str) -> BinaryIO:
    """A new file in the graph's folder, with room for what goes wrong. Raises ConflictError."""
    folder = state_folder(graph_file, environ)
    with _told(folder):
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        _find_room(folder)
        return (folder / name).open("wb")


def announce(folder: Path, run: Run) -> None:
    """Let others find it. Raises ConflictError where the disk is full."""
    new = folder / (_RUN + ".new")
    with _told(folder):
        new.write_text(json.dumps(asdict(run)))
        new.rename(folder / _RUN)


def find_run(graph_file: Path | None, environ: Mapping[str, str]) -> tuple[Path, Run]:
    """The graph of this file; without one that of ./graph.yaml, or else the only one that is up. Raises NotRunningError."""
    if graph_file is not None or Path("graph.yaml").exists():
        file = graph_file or Path("graph.yaml")
        folder = state_folder(file, environ)
        run = read_run(folder)
        if run is not None:
            return folder, run
        if graph_file is not None:
            raise NotRunningError(f"{graph_file} is not up; toolkit up {graph_file} -d brings it up")
    up = [(folder, run) for folder in _folders(environ) if (run := read_run(folder)) is not None]
    if len(up) == 1:
        return up[0]
    if up:
        raise NotRunningError(f"several graphs are up; name one: {', '.join(f'--graph {run.path}' for _, run in up)}")
    raise NotRunningError("no graph is up; toolkit up graph.yaml -d brings one up")


def find_folder(graph_file: Path | None, environ: Mapping[str, str]) -> Path:
    """As `find_run`, but of a graph that was up once too."""
    file = graph_file or Path("graph.yaml")
    folder = state_folder(file, environ)
    if folder.is_dir() and (graph_file is not None or file.exists()):
        return folder
    return find_run(graph_file, environ)[0]


def read_run(folder: Path) -> Run | None:
    """None where nobody runs it, or somebody is just about to."""
    if not is_locked(folder):
        return None
    try:
        return Run(**json.loads((folder / _RUN).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_locked(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("rb") as lock:
            return not _try_lock(lock.fileno(), fcntl.LOCK_SH)
    except OSError:
        return False


def _folders(environ: Mapping[str, str]) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(state_home(environ).iterdir())


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What cannot be written is a ConflictError with its cure."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cure = "make room there" if is_full else "let XDG_STATE_HOME name a folder where you may"
        raise ConflictError(f"cannot write in {folder}: {error.strerror}; {cure}") from None


def _find_room(folder: Path) -> None:
    """Raises OSError where there is none."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
        probe.write(bytes(_ROOM))


def _try_lock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _refuse(graph_file: Path, folder: Path) -> None:
    run = read_run(folder)
    who = f"process {run.pid}" if run is not None else "another process"
    raise RunningError(
        f"{graph_file} is up already, by {who}; see toolkit ps, or take it down first: toolkit down --graph {graph_file}"
    )
