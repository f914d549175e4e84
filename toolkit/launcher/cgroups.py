"""What the cgroups of this process allow it, versions 1 and 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html).

Every level above counts too: the least of them is the limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OCTAL = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}
"""How mountinfo writes what would end a field."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """None: no limit."""

    cpus: float | None = None
    """Cores' worth of time."""
    memory: int | None = None
    """Bytes."""


def read_allowance(proc: Path = Path("/proc")) -> Allowance:
    """What is not there, or cannot be read, limits nothing."""
    cpus = [found for folder in _levels(proc, "cpu") if (found := _read_cpus(folder)) is not None]
    memory = [found for folder in _levels(proc, "memory") if (found := _read_memory(folder)) is not None]
    return Allowance(min(cpus, default=None), min(memory, default=None))


def own_cgroup(proc: Path = Path("/proc"), controller: str | None = None) -> tuple[Path, Path] | None:
    """This process's folder and the mount that it is in: of version 2, or of version 1's `controller`."""
    paths = dict(_cgroup_paths(proc))
    if controller not in paths:
        return None
    for mounted, root, named in _mounts(proc):
        if controller in named:
            inside = paths[controller].removeprefix(root if root != "/" else "")
            folder = mounted / inside.strip("/")
            return (folder if folder.is_dir() else mounted), mounted
    return None


def _levels(proc: Path, controller: str) -> Iterator[Path]:
    """The folders that may limit this process, its own first."""
    for version in (None, controller):
        found = own_cgroup(proc, version)
        if found is not None:
            folder, top = found
            yield folder
            yield from (above for above in folder.parents if above.is_relative_to(top))


def _cgroup_paths(proc: Path) -> Iterator[tuple[str | None, str]]:
    """Controller → path; version 2 has the one path, under None."""
    for line in _lines(proc / "self" / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield from [(None, path)] if number == "0" and not controllers else ((c, path) for c in controllers.split(","))


def _mounts(proc: Path) -> Iterator[tuple[Path, str, tuple[str | None, ...]]]:
    """Where it is mounted, which of its folders is, and its controllers (see proc_pid_mountinfo(5))."""
    for line in _lines(proc / "self" / "mountinfo"):
        left, _, right = line.partition(" - ")
        fields, (kind, *_, options) = left.split(), right.split() or ("", "")
        if kind in ("cgroup", "cgroup2") and len(fields) > 4:
            yield _unescape(fields[4]), fields[3], ((None,) if kind == "cgroup2" else tuple(options.split(",")))


def _unescape(text: str) -> Path:
    for written, meant in _OCTAL.items():
        text = text.replace(written, meant)
    return Path(text)


def _read_cpus(folder: Path) -> float | None:
    words = _words(folder / "cpu.max") or [
        *_words(folder / "cpu.cfs_quota_us"),
        *_words(folder / "cpu.cfs_period_us"),
    ]
    match words:
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
            return int(quota) / int(period)
    return None  # "max", or -1


def _read_memory(folder: Path) -> int | None:
    words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
    return int(words[0]) if words and words[0].isdecimal() else None


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
