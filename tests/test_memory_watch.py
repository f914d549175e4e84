"""Who takes more memory than its limit, read from a /proc that is laid out as the kernel's; the clock is a fake."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from toolkit.launcher.memory import FAMILY_INTERVAL, FILL_RATE, LATEST, SOONEST, MemoryWatch, count_oom_kills

MIB = 1 << 20


class Proc:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hold("self", 1)

    def hold(self, pid: int | str, mib: int, *, shared: int = 0, parent: int | None = None) -> None:
        """A process that holds so much, of which it shares a part with others since a fork."""
        folder = self.folder / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
        lines = (
            f"Name:\tx\nVmRSS:\t 999999999 kB\nRssAnon:\t {mib << 10} kB\nRssFile:\t 888888888 kB\nRssShmem:\t 0 kB\n"
        )
        (folder / "status").write_text(lines)
        own = (mib << 10) - (shared << 9)
        (folder / "smaps_rollup").write_text(f"Pss: 777777777 kB\nPss_Anon: {own} kB\nPss_Shmem: 0 kB\n")
        if parent is not None:
            file = self.folder / str(parent) / "task" / str(parent) / "children"
            file.write_text(f"{file.read_text() if file.exists() else ''}{pid} ")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def watch(tmp_path: Path) -> tuple[MemoryWatch, Proc, Clock]:
    proc, clock = Proc(tmp_path), Clock()
    return MemoryWatch(clock, tmp_path), proc, clock


def look(memory: MemoryWatch, clock: Clock) -> list[tuple[str, int, int]]:
    """At the time when it wants to."""
    patience = memory.patience()
    assert patience is not None
    clock.now += patience
    return list(memory.look())


def test_who_takes_too_much_is_told_once(tmp_path: Path) -> None:
    memory, proc, clock = watch(tmp_path)
    proc.hold(7, 90)
    proc.hold(8, 10)
    memory.begin("a", 7, 100 * MIB)
    memory.begin("b", 8, 100 * MIB)
    assert look(memory, clock) == []
    proc.hold(7, 101)
    assert look(memory, clock) == [("a", 101 * MIB, 100 * MIB)]
    assert look(memory, clock) == []


def test_what_a_replica_started_counts_but_what_they_share_only_once(tmp_path: Path) -> None:
    memory, proc, clock = watch(tmp_path)
    proc.hold(7, 60, shared=50)
    proc.hold(8, 60, shared=50, parent=7)
    memory.begin("a", 7, 100 * MIB)
    assert look(memory, clock) == []
    proc.hold(9, 40, parent=8)
    clock.now += FAMILY_INTERVAL
    assert list(memory.look()) == [("a", (35 + 35 + 40) * MIB, 100 * MIB)]


def test_the_nearer_to_the_limit_the_sooner_it_looks_again(tmp_path: Path) -> None:
    memory, proc, clock = watch(tmp_path)
    proc.hold(7, 0)
    memory.begin("a", 7, FILL_RATE // 2)
    assert memory.patience() == pytest.approx(SOONEST)
    look(memory, clock)
    assert memory.patience() == pytest.approx(0.5)
    proc.hold(7, FILL_RATE // 2 // MIB)
    look(memory, clock)
    assert memory.patience() == pytest.approx(SOONEST)
    memory.begin("a", 7, 100 * FILL_RATE)
    look(memory, clock)
    assert memory.patience() == pytest.approx(LATEST)


def test_one_that_is_gone_holds_nothing_and_wants_no_look(tmp_path: Path) -> None:
    memory, _, clock = watch(tmp_path)
    memory.begin("a", 7, 1)
    assert look(memory, clock) == []
    memory.end("a")
    memory.end("a")
    assert memory.patience() is None


def test_where_nobody_tells_nobody_is_watched(tmp_path: Path) -> None:
    memory = MemoryWatch(Clock(), tmp_path)
    memory.begin("a", os.getpid(), 1)
    assert memory.patience() is None


def test_a_real_process_is_measured() -> None:
    clock = Clock()
    memory = MemoryWatch(clock)
    code = "held = b'x' * (64 << 20); print(flush=True); input()"
    with Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        memory.begin("a", process.pid, 32 * MIB)
        clock.now += 1
        ((name, used, limit),) = memory.look()
        process.kill()
    assert (name, limit) == ("a", 32 * MIB)
    assert 64 * MIB < used < 256 * MIB


def test_the_kernels_own_kills_are_counted(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("oom_kill_disable 9\noom_kill 3\n")
    assert count_oom_kills(tmp_path) == 3
    assert count_oom_kills(tmp_path / "none") == 0


def test_who_is_looked_at_in_a_hurry_is_found_at_once(tmp_path: Path) -> None:
    memory, proc, _ = watch(tmp_path)
    proc.hold(7, 110)
    memory.begin("a", 7, 100 * MIB)
    assert list(memory.look()) == [], "it was begun just now"
    memory.hurry("a")
    memory.hurry("gone")
    assert list(memory.look()) == [("a", 110 * MIB, 100 * MIB)]
