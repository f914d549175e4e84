"""Memory limits that the kernel keeps: a cgroup for each replica, where this launcher's own cgroup is handed over to it.

Version 2 only (https://docs.kernel.org/admin-guide/cgroup-v2.html). A cgroup that limits its children holds no process
itself, so the launcher moves into a child too; where others are in its cgroup that cannot be, and nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from toolkit.launcher.cgroups import own_cgroup

_PREFIX = "toolkit-"


class Cages:
    """Made by `open_cages`; to be closed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / f"{_PREFIX}{os.getpid()}-launcher"
        self._cages: dict[str, Path] = {}
        self._left_behind: list[Path] = []
        self._is_ours = False
        """It was us who let this cgroup limit its children."""

    def begin(self) -> None:
        """Raises OSError where this cgroup is not the launcher's alone."""
        self._own.mkdir()
        _write(self._own / "cgroup.procs", os.getpid())
        control = self._folder / "cgroup.subtree_control"
        if "memory" not in control.read_text().split():
            _write(control, "+memory")
            self._is_ours = True

    def put(self, name: str, pid: int, limit: int) -> bool:
        """Let the kernel end this process, and all that it starts, when they take more. False where it will not."""
        cage = self._folder / f"{_PREFIX}{os.getpid()}-{name}"
        try:
            cage.mkdir()
            self._cages[name] = cage
            _write(cage / "memory.max", limit)
            _write(cage / "memory.oom.group", 1)
            with contextlib.suppress(OSError):  # a kernel without swap
                _write(cage / "memory.swap.max", 0)
            _write(cage / "cgroup.procs", pid)
        except OSError:
            self.end(name)
            return False
        return True

    def end(self, name: str) -> bool:
        """Take the cage away. True where the kernel had to end what was in it."""
        cage = self._cages.pop(name, None)
        if cage is None:
            return False
        is_over = _has_killed(cage)
        if not _remove(cage):
            self._left_behind.append(cage)  # something in it is still about to end
        return is_over

    def close(self) -> None:
        for name in list(self._cages):
            self.end(name)
        for cage in self._left_behind:
            _remove(cage)
        with contextlib.suppress(OSError):
            if self._is_ours:
                _write(self._folder / "cgroup.subtree_control", "-memory")
            _write(self._folder / "cgroup.procs", os.getpid())
        _remove(self._own)


def open_cages(proc: Path = Path("/proc")) -> Cages | None:
    """None where this launcher's cgroup is not handed over to it."""
    found = own_cgroup(proc)
    if found is None or not _has_memory(found[0]):
        return None
    _sweep(found[0], proc)
    cages = Cages(found[0])
    try:
        cages.begin()
    except OSError:
        cages.close()
        return None
    return cages


def _has_memory(folder: Path) -> bool:
    try:
        controllers = (folder / "cgroup.controllers").read_text().split()
    except OSError:
        return False
    return "memory" in controllers and os.access(folder / "cgroup.subtree_control", os.W_OK)


def _sweep(folder: Path, proc: Path) -> None:
    """Remove what a launcher that was killed left."""
    for cage in folder.glob(f"{_PREFIX}*"):
        pid = cage.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not (proc / pid).exists():
            _remove(cage)


def _has_killed(cage: Path) -> bool:
    try:
        words = (cage / "memory.events").read_text().split()
    except OSError:
        return False
    return "oom_kill" in words and words[words.index("oom_kill") + 1] != "0"


def _remove(cage: Path) -> bool:
    with contextlib.suppress(OSError):
        cage.rmdir()
    return not cage.exists()


def _write(file: Path, value: int | str) -> None:
    fd = os.open(file, os.O_WRONLY)  # never made: only the kernel makes these
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)
