"""What the machine can do to a graph: full and read-only disks, floods of output, a clock that jumps. One clear line each."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.integration.up import Project, Running, environ, up
from toolkit.launcher.record import read_record
from toolkit.launcher.state import state_folder

pytestmark = pytest.mark.integration

SAYS = """
import sys
from services.echo.v1.echo_toolkit import EchoBase, Note


class Says(EchoBase):
    # Prints a line of so many bytes, so many times.
    async def say(self, request, context):
        for _ in range(request.times):
            sys.stdout.buffer.write(b"\\xff" + b"x" * (request.number - 1) + b"\\n")
        sys.stdout.flush()
        return request
"""
COMMAND = (sys.executable, "-m", "toolkit")
ENTRY = 'entry: {class: "says:Says", port: PORT}'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "says.py").write_text(SAYS)
    return Project(tmp_path)


@pytest.fixture
def graph(project: Project) -> Path:
    return project.write(ENTRY)


def begin_call(project: Project, **request: object) -> subprocess.Popen[str]:
    """Nobody reads what the graph says while this is waited for: more than a pipe holds keeps it from answering."""
    command = (*COMMAND, "call", "Say", json.dumps(request), "--graph", "graph.yaml", "--timeout", "30s")
    return subprocess.Popen(
        command, cwd=project.folder, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(call: subprocess.Popen[str]) -> dict[str, object]:
    out, err = call.communicate()
    assert (call.returncode, err) == (0, "")
    reply: dict[str, object] = json.loads(out)
    return reply


def take_down(running: Running) -> None:
    running.signal(signal.SIGTERM)
    assert running.wait_exit() == 0


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", "ro") as found:
        yield found


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", "size=64k") as found:
        fill(found)
        yield found


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path / "disk", "size=256k") as found:
        yield found


def fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("options", [(), ("-d",), ("-d", "--wait")], ids=" ".join)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("read_only", "Read-only file system; let XDG_STATE_HOME name a folder where you may"),
        ("full", "No space left on device; make room there"),
    ],
)
def test_a_state_folder_that_takes_nothing_is_one_line(
    kind: str, said: str, options: tuple[str, ...], graph: Path, request: pytest.FixtureRequest
) -> None:
    home: Path = request.getfixturevalue(kind)
    with up(graph, *options, env=environ(XDG_STATE_HOME=str(home))) as running:
        assert running.wait_exit() == 5
    assert len(running.said) == 1
    assert re.fullmatch(rf"error: cannot write in {home}/grpc-model-toolkit/graph-\w+: {said}", running.said[0])


def test_a_disk_that_fills_up_costs_the_record_and_nothing_else(project: Project, graph: Path, small: Path) -> None:
    env = environ(XDG_STATE_HOME=str(small))
    with up(graph, env=env) as running:
        running.wait_ready()
        for _ in range(2):
            call = begin_call(project, number=1000, times=400)
            for _ in range(400):
                running.wait_line("xxx")
            finish(call)
        take_down(running)
    assert running.errors == [
        "error: what the graph says is not recorded any more: No space left on device; make room, and start it again"
    ]


def test_a_line_of_ten_megabytes_is_shown_in_pieces_and_held_nowhere(project: Project, graph: Path) -> None:
    with up(graph) as running:
        running.wait_ready()
        call = begin_call(project, number=10_000_000, times=1)
        pieces = [running.wait_line("xxx").removeprefix("entry | ").rstrip("\n") for _ in range(39)]
        finish(call)
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{running.process.pid}/status").read_text())
        take_down(running)
    assert pieces[0].startswith(r"\xffxxx")
    assert sum(map(len, pieces)) == 10_000_000 + len(r"\xff") - 1
    assert max(map(len, pieces)) <= 256 * 1024 + len(r"\xff")
    assert running.errors == []
    assert peak
    assert int(peak[1]) < 100_000


SHIFT = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* The clock on the wall, moved by as many seconds as the file named by SHIFT says. */
static long shift(void) {
    long by = 0;
    FILE *file = fopen(getenv("SHIFT"), "r");
    if (file) { if (fscanf(file, "%ld", &by) != 1) by = 0; fclose(file); }
    return by;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += shift();
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec; now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the clock is moved by a library that gcc compiles")
def test_a_clock_that_jumps_ends_no_call_and_no_replica(project: Project, tmp_path: Path) -> None:
    """An hour ahead, and two back."""
    (tmp_path / "shift.c").write_text(SHIFT)
    library, by = tmp_path / "shift.so", tmp_path / "shift"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "shift.c"], check=True)
    path = project.write('leaf: {class: "classes:Leaf"}\nentry: {class: "classes:Caller", port: PORT}')
    env = environ(LD_PRELOAD=str(library), SHIFT=str(by))
    with up(path, "--hang-timeout", "1s", env=env) as running:
        running.wait_ready()
        before = running.replicas()
        record = read_record(state_folder(path, env), is_growing=lambda: True, pause=time.sleep)
        for seconds in ("3600", "-3600"):
            call = begin_call(project, text="wait 2.5")
            next(said for said in record if said["text"] == "call has begun")  # shown comes first: recorded is later
            jump(by, seconds)
            assert finish(call)["text"] == "wait 2.5"  # longer than a replica may be silent
            assert running.replicas() == before
        take_down(running)
    times = [said["t"] for said in read_record(state_folder(path, env))]
    assert max(times) - min(times) > 7000, "it did jump"
    assert running.errors == []


def jump(by: Path, seconds: str) -> None:
    """At once: nobody reads a file that is written halfway."""
    new = by.with_suffix(".new")
    new.write_text(seconds)
    new.replace(by)
