"""A graph that goes up and down again and again, its launcher killed now and then: nothing of it may stay."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from scripts.chaos_cases.case import Case, Row, say
from scripts.chaos_cases.load import quantile
from toolkit.launcher.desk import ask
from toolkit.launcher.state import read_run, state_folder

ROOT: Final = Path(__file__).parents[2]
DEFAULT: Final = 20
LANES: Final = 2
"""Graphs side by side."""
KILL_EVERY: Final = 5
"""The launcher of each so many-th cycle is killed instead of stopped."""
GONE_WITHIN: Final = 2.0
LOOK_EVERY: Final = 0.02
LOOKS: Final = 25
MIB: Final = 1 << 20
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
MARK: Final = "CHAOS_CYCLES"
PORTS: Final = 20_000
"""The first lane's port: below those that the kernel gives to connections of whoever else works here."""
GRAPH: Final = """name: cycles
entry: leaf
services:
  leaf: {class: "scripts.chaos_cases.services:Spreads", resources: {memory: 1GiB}, port: PORT}
"""


@dataclass(slots=True)
class Lane:
    """One graph, in folders of its own: whatever stays there is of its making."""

    home: Path
    port: int
    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    """In the environment of all that it starts."""
    ups: list[float] = field(default_factory=list)
    downs: list[float] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    """Seconds until nothing was left of a launcher that was killed."""
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("run", "state", "tmp"):
            (self.home / name).mkdir(parents=True, mode=0o700)
        self.graph.write_text(GRAPH.replace("PORT", str(self.port)))

    @property
    def graph(self) -> Path:
        return self.home / "graph.yaml"

    @property
    def environ(self) -> Mapping[str, str]:
        own = {"XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": "state", "TMPDIR": "tmp"}
        return {
            **os.environ,
            **{name: str(self.home / folder) for name, folder in own.items()},
            "PYTHONPATH": str(ROOT),
            MARK: self.mark,
        }

    def cycle(self, *, kill: bool) -> None:
        began = time.monotonic()
        with self.up() as launcher:
            said: deque[str] = deque(maxlen=3)
            if not self.wait_ready(launcher, said):
                self.wrong.append(f"not ready; exit code {launcher.wait()}: {' '.join(said)}")
                return
            ready = time.monotonic()
            launcher.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            code = launcher.wait()
        if kill:
            self.kills.append(self.wait_gone())
            return
        self.ups.append(ready - began)
        self.downs.append(time.monotonic() - ready)
        if code:
            self.wrong.append(f"exit code {code}")

    def restarts(self, count: int) -> tuple[int, float]:
        """Descriptors and MiB that one launcher gains while its replica is replaced so often."""
        with self.up() as launcher:
            ready = self.wait_ready(launcher, deque(maxlen=1))
            run = read_run(state_folder(self.graph, self.environ))
            if not ready or run is None:
                raise RuntimeError("the graph is not up")
            ask(run.socket, {"do": "restart", "services": []})  # what the first one needs stays
            descriptors, memory = held(launcher.pid)
            for _ in range(count):
                ask(run.socket, {"do": "restart", "services": []})
            more, now = held(launcher.pid)
            launcher.terminate()
            launcher.wait()
        return more - descriptors, (now - memory) / MIB

    def up(self) -> subprocess.Popen[str]:
        command = (sys.executable, "-m", "toolkit", "up", str(self.graph))
        return subprocess.Popen(command, env=self.environ, cwd=self.home, stderr=subprocess.PIPE, text=True)

    def wait_ready(self, launcher: subprocess.Popen[str], said: deque[str]) -> bool:
        """Whether it is; `said` gets its latest lines."""
        assert launcher.stderr is not None
        for line in launcher.stderr:
            said.append(line.strip())
            if line.startswith("ready: "):
                return True
        return False

    def wait_gone(self) -> float:
        began = time.monotonic()
        while (self.processes() or any((self.home / "run").iterdir())) and time.monotonic() < began + 5 * GONE_WITHIN:
            time.sleep(LOOK_EVERY)
        return time.monotonic() - began

    def processes(self) -> list[str]:
        wanted = f"{MARK}={self.mark}".encode()
        return [pid for pid in filter(str.isdecimal, os.listdir("/proc")) if wanted in environ_of(pid)]

    def files(self) -> set[str]:
        """Files, sockets and FIFOs, and Unix sockets without a file."""
        bound = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if str(self.home) in line]
        return {*map(str, self.home.rglob("*")), *bound}


def environ_of(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def held(pid: int) -> tuple[int, int]:
    """Descriptors, when whoever asked for something has hung up, and bytes of memory."""
    counts = []
    for _ in range(LOOKS):
        counts.append(len(os.listdir(f"/proc/{pid}/fd")))
        time.sleep(LOOK_EVERY)
    return min(counts), int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def of_the_kernel() -> Iterator[str]:
    """Shared memory and cgroups: of the whole machine, for they bear nobody's mark."""
    yield from (f"shared memory {path}" for path in Path("/dev/shm").glob("*"))
    yield from (f"shared memory {line.split()[1]}" for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:])
    yield from (f"cgroup {path}" for path in Path("/sys/fs/cgroup").glob("**/toolkit-[0-9]*-*/"))


async def run(count: int) -> AsyncIterator[Row]:
    with TemporaryDirectory(prefix="chaos") as folder:
        lanes = [Lane(Path(folder) / str(n), PORTS + n) for n in range(LANES)]
        for lane in lanes:
            await asyncio.to_thread(lane.cycle, kill=False)  # logs and the like are there from now on
        files, kernels = [lane.files() for lane in lanes], set(of_the_kernel())
        numbers = iter(range(1, count + 1))

        def work(lane: Lane) -> None:
            for number in numbers:
                lane.cycle(kill=number % KILL_EVERY == 0)
                if number % max(1, count // 10) == 0:
                    say(f"cycles: {number} of {count}")

        try:
            await asyncio.gather(*(asyncio.to_thread(work, lane) for lane in lanes))
        finally:
            deque(numbers, 0)  # who is interrupted begins no other
        for lane in lanes:
            await asyncio.to_thread(lane.cycle, kill=False)  # the one after a killed one clears up its claim
        restarts = max(1, count // 10)
        say(f"cycles: {restarts} restarts under one launcher")
        descriptors, memory = await asyncio.to_thread(lanes[0].restarts, restarts)
        processes = [pid for lane in lanes for pid in lane.processes()]
        left = {path for lane, before in zip(lanes, files, strict=True) for path in lane.files() - before}
        kernels = set(of_the_kernel()) - kernels
    wrong = [text for lane in lanes for text in lane.wrong]
    kills = [seconds for lane in lanes for seconds in lane.kills]
    for text in (*wrong, *left, *kernels):
        say(f"cycles: {text}")
    measured = {
        "cycles": count,
        "up_p50_s": quantile((seconds for lane in lanes for seconds in lane.ups), 0.5),
        "down_p50_s": quantile((seconds for lane in lanes for seconds in lane.downs), 0.5),
    }
    yield Row("cycles", "that did not go up and down well", len(wrong), "<=", 0, "", measured)
    yield Row("cycles", "processes left", len(processes), "<=", 0)
    yield Row("cycles", "files, sockets and FIFOs left", len(left), "<=", 0, "", {"of": sum(map(len, files))})
    yield Row("cycles", "shared memory and cgroups left", len(kernels), "<=", 0)
    slowest = {"kills": len(kills), "p50_s": quantile(kills, 0.5)}
    yield Row(
        "cycles", "until a killed launcher left nothing", max(kills, default=0.0), "<=", GONE_WITHIN, "s", slowest
    )
    yield Row(
        "cycles", "descriptors gained by restarts", descriptors, "<=", 0, "", {"restarts": restarts, "MiB": memory}
    )


def case(count: int) -> Case:
    async def cycles() -> AsyncIterator[Row]:
        async for row in run(count):
            yield row

    cycles.__doc__ = f"A graph goes up and down {count} times, and its launcher is killed each {KILL_EVERY}th time."
    return Case("cycles", cycles)
