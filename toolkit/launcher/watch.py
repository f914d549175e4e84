"""`up --watch`: the files of a project, in a thread of its own. What is written within a moment comes as one change."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from watchfiles import DefaultFilter, watch

from toolkit.launcher.captured import run_captured
from toolkit.launcher.events import Changed, Event, Noted
from toolkit.launcher.processes import Processes

SUFFIXES = (".py", ".proto", ".yaml", ".yml", ".json", ".toml", ".js", ".mjs")
GENERATED = "_toolkit.py"
DEBOUNCE_MS = 200
"""A checkout writes many files: they are one change."""
GENERATE = (sys.executable, "-m", "toolkit", "generate")
GENERATE_TIMEOUT = 120.0
_ERROR = "error: "


@contextlib.contextmanager
def watched(folder: Path, processes: Processes, environ: Mapping[str, str]) -> Iterator[None]:
    """Within the block, what changes below `folder` is an event; a changed .proto is generated from first."""
    ours, theirs = socket.socketpair()
    stop = _Stop()
    thread = threading.Thread(target=_follow, args=(folder, theirs, stop, environ), daemon=True, name="watch")
    rest = b""

    def read() -> Iterable[Event]:
        nonlocal rest
        *lines, rest = (rest + ours.recv(65536)).split(b"\n")
        return [_event(json.loads(line)) for line in lines]

    with ours, theirs:
        processes.listen(ours, read)
        thread.start()
        stop.is_asked.wait()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            processes.forget(ours)


class _Stop(threading.Event):
    """Whoever watches asks for it again and again, for the first time once nothing is missed any more."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = threading.Event()

    def is_set(self) -> bool:
        self.is_asked.set()
        return super().is_set()


def _follow(folder: Path, out: socket.socket, stop: _Stop, environ: Mapping[str, str]) -> None:
    def tell(**said: object) -> None:
        out.sendall(json.dumps(said).encode() + b"\n")

    try:
        for changes in watch(
            folder,
            watch_filter=_Filter(),
            debounce=DEBOUNCE_MS,
            step=DEBOUNCE_MS // 4,
            stop_event=stop,
            rust_timeout=200,
        ):
            paths = sorted({str(Path(path).resolve()) for _, path in changes})
            protos = [path for path in paths if path.endswith(".proto")]
            error, written = _generate(folder, environ) if protos else ("", [])
            if error:
                tell(error=error)
            tell(paths=[path for path in paths if path not in protos] + written)
    except (OSError, RuntimeError) as error:
        why = str(error).rstrip(".")
        tell(
            error=f"{folder} is not watched: {why}; if a limit in /proc/sys/fs/inotify is spent, raise it and start again"
        )
    finally:
        stop.is_asked.set()  # where it cannot be watched, nobody waits for that


def _generate(folder: Path, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """What is wrong with a .proto, or the files that were written."""
    try:
        done = run_captured(GENERATE, folder, environ, GENERATE_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"toolkit generate has not ended after {GENERATE_TIMEOUT:g} s", []
    if done.returncode:
        errors = [line.removeprefix(_ERROR) for line in done.stderr.splitlines() if line.startswith(_ERROR)]
        return "\n".join(errors) or f"toolkit generate ended with exit code {done.returncode}", []
    written = [line.removeprefix("wrote ") for line in done.stdout.splitlines() if line.startswith("wrote ")]
    return "", [str((folder / path).resolve()) for path in written]


def _event(said: Mapping[str, object]) -> Event:
    match said:
        case {"paths": list(paths)}:
            return Changed(tuple(map(str, paths)))
    return Noted(str(said.get("error")))


class _Filter(DefaultFilter):
    """What a service may be made of; nothing of version control, environments and caches. What was generated is told by whoever
    generates.
    """

    def __call__(self, change: object, path: str) -> bool:
        return path.endswith(SUFFIXES) and not path.endswith(GENERATED) and super().__call__(change, path)  # type: ignore[arg-type]
