"""What `toolkit up` costs: a graph of five trivial services. What is reported as the ratio is the value itself."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from scripts.benchmark.case import Case, Outcome

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 3
IDLE: Final = 10.0
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TICK: Final = os.sysconf("SC_CLK_TCK")
MIB: Final = 1 << 20


class Up:
    """`toolkit up` under way."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    async def wait(self, pattern: str) -> re.Match[str]:
        """The first line that has it."""
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            found = re.search(pattern, line.decode())
            if found:
                return found
        raise RuntimeError(f"toolkit up ended and never said {pattern}")

    async def down(self) -> float:
        """Seconds from the signal to the end."""
        start = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        assert self._process.stderr is not None
        await self._process.stderr.read()
        code = await self._process.wait()
        if code:
            raise RuntimeError(f"toolkit up ended with {code}")
        return time.perf_counter() - start

    def replicas(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"toolkit.replica" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@asynccontextmanager
async def up_five() -> AsyncIterator[Up]:
    services = "".join(f'  s{n}: {{class: "services.echo.service:Echo"}}\n' for n in range(4))
    async with up_graph("five", "s4", f'{services}  s4: {{class: "services.echo.service:Echo", port: PORT}}\n') as up:
        yield up


@asynccontextmanager
async def up_graph(name: str, entry: str, services: str) -> AsyncIterator[Up]:
    """`PORT` stands for one that is free."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        graph = Path(folder) / "graph.yaml"
        graph.write_text(f"name: {name}\nentry: {entry}\nservices:\n{services.replace('PORT', str(port))}")
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}", "XDG_STATE_HOME": folder}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "toolkit", "up", str(graph), env=environ, stderr=asyncio.subprocess.PIPE
        )
        try:
            yield Up(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def ready() -> Outcome:
    """Seconds from `toolkit up` until five trivial services are ready, the median of a few."""
    seconds, own = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        async with up_five() as up:
            found = await up.wait(r"ready: five on .*, ([0-9.]+) s\)")
            seconds.append(time.perf_counter() - start)
            own.append(float(found[1]))
            await up.down()
    return Outcome("up-five", statistics.median(seconds), "<=", 2.0, {"said_s": statistics.median(own)})


async def down() -> Outcome:
    """Seconds from SIGTERM until five trivial services are down, the median of a few."""
    seconds = []
    for _ in range(ROUNDS):
        async with up_five() as up:
            await up.wait("ready: five")
            seconds.append(await up.down())
    return Outcome("down-five", statistics.median(seconds), "<=", 1.0, {"slowest_s": max(seconds)})


async def launcher_memory() -> Outcome:
    """MiB that the launcher of five services holds."""
    async with up_five() as up:
        await up.wait("ready: five")
        own = memory(up.pid)
        await up.down()
    return Outcome("launcher-memory", own, "<=", 60, {})


async def replica_memory() -> Outcome:
    """MiB that a replica without a model holds, the largest of five."""
    async with up_five() as up:
        await up.wait("ready: five")
        found = max(map(memory, up.replicas()))
        await up.down()
    return Outcome("replica-memory", found, "<=", 70, {})


async def launcher_idle() -> Outcome:
    """Per cent of a core that the launcher of five idle services takes."""
    async with up_five() as up:
        await up.wait("ready: five")
        before = ticks(up.pid)
        await asyncio.sleep(IDLE)
        spent = 100 * (ticks(up.pid) - before) / TICK / IDLE
        await up.down()
    return Outcome("launcher-idle", spent, "<=", 1, {})


async def killed() -> Outcome:
    """Seconds from kill -9 of a replica until another is ready, beyond what its start takes."""
    async with up_five() as up:
        await up.wait("ready: five")
        seconds, starts = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            os.kill(up.replicas()[0], signal.SIGKILL)
            found = await up.wait(r"ready after ([0-9.]+) s")
            seconds.append(time.perf_counter() - start)
            starts.append(float(found[1]))
        await up.down()
    beyond = [all_of_it - start for all_of_it, start in zip(seconds, starts, strict=True)]
    measured = {"start_s": statistics.median(starts), "ready_s": statistics.median(seconds)}
    return Outcome("killed-replica", statistics.median(beyond), "<=", 0.5, measured)


def memory(pid: int) -> float:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / MIB


def ticks(pid: int) -> int:
    spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(spent[11]) + int(spent[12])


CASES = (
    Case("up-five", ready),
    Case("down-five", down),
    Case("launcher-memory", launcher_memory),
    Case("replica-memory", replica_memory),
    Case("launcher-idle", launcher_idle),
    Case("killed-replica", killed),
)
