"""No replica takes more memory than its limit: the kernel sees to it where it can be asked to (see `cages`), else we watch.

What counts for the watch is what a process and all that it started hold for themselves: heap, stacks, shared memory. Pages
of files do not, for the kernel takes those back by itself: weights that are mapped from disk cost nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.launcher.cages import Cages, open_cages

FILL_RATE = 4 << 30
"""Bytes a second that a replica is thought to take at most: the nearer it is to its limit, the sooner it is looked at again."""
SOONEST, LATEST = 0.05, 1.0
"""Seconds between two looks."""
FAMILY_INTERVAL = 3.0
"""Seconds until what a replica has started is listed again: that takes longer than to look at what is known."""
_OWN = ("RssAnon", "RssShmem")
_PROPORTIONAL = ("Pss_Anon", "Pss_Shmem")


@dataclass(slots=True)
class _Watched:
    pid: int
    limit: int
    due: float
    family: tuple[int, ...] = field(default=())
    """The process and all that it started, when that was last looked at."""
    family_until: float = 0.0


class MemoryWatch:
    """Says who takes too much; its caller ends them."""

    def __init__(self, clock: Callable[[], float], proc: Path = Path("/proc")) -> None:
        self._clock = clock
        self._proc = proc
        self._watched: dict[str, _Watched] = {}

    @property
    def is_possible(self) -> bool:
        """This platform tells what a process holds."""
        return bool(_sum_of(self._proc / "self" / "status", _OWN))

    def begin(self, name: str, pid: int, limit: int) -> None:
        if self.is_possible:
            self._watched[name] = _Watched(pid, limit, self._clock() + SOONEST)

    def end(self, name: str) -> None:
        self._watched.pop(name, None)

    def patience(self) -> float | None:
        """Seconds until it wants to look again."""
        now = self._clock()
        return min((max(0.0, each.due - now) for each in self._watched.values()), default=None)

    def hurry(self, name: str) -> None:
        """Let the next look be at this one too."""
        if name in self._watched:
            self._watched[name].due = self._clock()

    def look(self) -> Iterator[tuple[str, int, int]]:
        """Name, bytes used and limit of those who are found above it; each is told once."""
        now = self._clock()
        for name, each in [item for item in self._watched.items() if item[1].due <= now]:
            used = self._used(each, now)
            if used > each.limit:
                self.end(name)
                yield name, used, each.limit
            else:
                each.due = now + min(LATEST, max(SOONEST, (each.limit - used) / FILL_RATE))

    def _used(self, watched: _Watched, now: float) -> int:
        if now >= watched.family_until:
            watched.family = tuple(self._family(watched.pid))
            watched.family_until = now + FAMILY_INTERVAL
        used = sum(self._sum(pid, "status", _OWN) for pid in watched.family)
        if used <= watched.limit or len(watched.family) == 1:
            return used
        return (
            sum(self._sum(pid, "smaps_rollup", _PROPORTIONAL) for pid in watched.family) or used
        )  # pages shared by forks

    def _family(self, pid: int) -> Iterator[int]:
        yield pid
        for file in self._proc.glob(f"{pid}/task/*/children"):
            for child in _read(file).split():
                yield from self._family(int(child))

    def _sum(self, pid: int, file: str, names: tuple[str, ...]) -> int:
        return _sum_of(self._proc / str(pid) / file, names)


def _sum_of(file: Path, names: tuple[str, ...]) -> int:
    """Bytes of these lines: `RssAnon:     1234 kB`."""
    lines = (line.split() for line in _read(file).splitlines())
    return sum(int(line[1]) << 10 for line in lines if line and line[0].rstrip(":") in names)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # it has ended
        return ""


class MemoryKeeper:
    """Holds replicas to their limits. To be closed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._watch = MemoryWatch(clock)
        self._cages: Cages | None = None
        self._caged: dict[str, int] = {}
        self._is_open = False
        self._kernels_kills = count_oom_kills()

    @property
    def how(self) -> str:
        """A sentence about `resources.memory`."""
        self._open()
        if self._cages is not None:
            return "resources.memory: the kernel keeps it, by a cgroup for each replica"
        if self._watch.is_possible:
            return "resources.memory: the launcher watches, and ends a replica that takes more"
        return "resources.memory: not kept; this platform does not tell what a process takes"

    def begin(self, name: str, pid: int, limit: int) -> None:
        self._open()
        if self._cages is not None and self._cages.put(name, pid, limit):
            self._caged[name] = limit
        else:
            self._watch.begin(name, pid, limit)

    def patience(self) -> float | None:
        """Seconds until it wants to look again."""
        return self._watch.patience()

    def hurry(self, name: str) -> None:
        """Let the next look be at this one too."""
        self._watch.hurry(name)

    def look(self) -> Iterator[tuple[str, int, int]]:
        """Name, bytes used and limit of those who are to be ended now; each is told once."""
        return self._watch.look()

    def end(self, name: str, *, is_killed: bool) -> tuple[int | None, int | None] | None:
        """Forget one that has ended, by SIGKILL or otherwise. Bytes used and limit where the kernel ended it for its memory."""
        kills = self._kernels_kills
        self._kernels_kills = count_oom_kills()
        self._watch.end(name)
        limit = self._caged.pop(name, None)
        if self._cages is not None and self._cages.end(name):
            return limit, limit
        return (None, None) if is_killed and kills < self._kernels_kills else None

    def close(self) -> None:
        if self._cages is not None:
            self._cages.close()

    def _open(self) -> None:
        """Only where somebody has a limit: the launcher changes its cgroup for it."""
        if not self._is_open:
            self._is_open = True
            self._cages = open_cages()


def count_oom_kills(proc: Path = Path("/proc")) -> int:
    """How often the kernel has killed a process since the machine started because memory ran out, cgroups' included."""
    found = (line.split() for line in _read(proc / "vmstat").splitlines() if line.startswith("oom_kill "))
    return next((int(line[1]) for line in found), 0)
