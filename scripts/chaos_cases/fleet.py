"""Replicas as real processes on Unix sockets in a temporary folder, and handles on them as a replica would have."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Line
from toolkit.connect import pool
from toolkit.limits import MessageLimits
from toolkit.spec import PREFIX, ReplicaSpec
from toolkit.transport.pool import PoolTransport

START_TIMEOUT = 60.0
PAGE = os.sysconf("SC_PAGE_SIZE")
SERVICES = "scripts.chaos_cases.services:"


class Process:
    """One replica. It dies with us, for it holds the other end of a socket of ours."""

    def __init__(self, spec: ReplicaSpec, log: Path) -> None:
        self._spec = spec
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._control: asyncio.StreamWriter | None = None

    @property
    def address(self) -> str:
        return self._spec.listen[0]

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def rss(self) -> int:
        """Bytes of memory that it holds."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE

    async def start(self) -> None:
        """Return once it is ready."""
        ours, theirs = socket.socketpair()
        with theirs, self._log.open("ab") as log:
            spec = {**self._spec.to_environ(), PREFIX + "CONTROL_FD": str(theirs.fileno())}
            environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
            self._process = subprocess.Popen(  # noqa: ASYNC220 - uvloop's own would run gRPC's fork handlers
                [sys.executable, "-m", "toolkit.replica"],
                env={**environ, **spec},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                stdout=log,
                stderr=log,
            )
        events, self._control = await asyncio.open_connection(sock=ours)
        async with asyncio.timeout(START_TIMEOUT):
            await self._wait_ready(events)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def wait_exit(self) -> int:
        assert self._process is not None
        code = await asyncio.to_thread(self._process.wait)
        if self._control is not None:
            self._control.close()
        return code

    async def stop(self) -> int:
        """Drain it. Returns its exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait_exit()

    async def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self.wait_exit()

    async def _wait_ready(self, events: asyncio.StreamReader) -> None:
        async for line in events:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "ready":
                return
            if event["event"] == "failed":
                raise RuntimeError(event["message"])
        raise RuntimeError(
            f"a replica ended with {await self.wait_exit()} before it was ready:\n{self._log.read_text()}"
        )


class Fleet:
    """The deployments of one case. Leaving it kills all that still runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._addresses: dict[str, tuple[str, ...]] = {}
        self.processes: list[Process] = []

    async def start(self, name: str, cls: str, *, replicas: int = 3, below: str = "", **options: Any) -> list[Process]:
        """The replicas of a deployment, ready. `below` names the one that its handle reaches."""
        addresses = tuple(f"unix:{self._folder / f'{name}{n}'}" for n in range(replicas))
        self._addresses[name] = addresses
        if below:
            options |= {"addresses": {below: self._addresses[below]}, "bind": {"next": below}}
        found = [
            Process(
                ReplicaSpec(service=SERVICES + cls, deployment=name, replica=n, listen=(address,), **options),
                self._folder / f"{name}{n}.log",
            )
            for n, address in enumerate(addresses)
        ]
        self.processes += found
        await asyncio.gather(*(process.start() for process in found))
        return found

    async def start_chain(self, leaf: str, **options: Any) -> dict[str, list[Process]]:
        """Four deployments, each of three replicas: a → b → c → leaf."""
        found = {"leaf": await self.start("leaf", leaf, **options)}
        for name, below in (("c", "leaf"), ("b", "c"), ("a", "b")):
            found[name] = await self.start(name, "Hop", below=below, **options)
        return dict(reversed(found.items()))


@asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="chaos") as folder:
        found = Fleet(Path(folder))
        try:
            yield found
        finally:
            await asyncio.gather(*(process.kill() for process in found.processes))


@asynccontextmanager
async def handle(processes: Sequence[Process], name: str = "leaf") -> AsyncIterator[tuple[EchoClient, PoolTransport]]:
    """A handle as a replica has it."""
    transport = pool(
        [process.address for process in processes],
        EchoBase.__contract__,
        name=name,
        limits=MessageLimits(),
        keepalive=True,
    )
    try:
        await transport.wait_ready()
        yield EchoClient(transport, name), transport
    finally:
        await transport.close()


async def records(processes: Sequence[Process]) -> list[dict[str, Any]]:
    """What each replica has seen."""

    async def ask(process: Process) -> dict[str, Any]:
        async with handle([process]) as (echo, _):
            found: dict[str, Any] = json.loads((await echo.ping(Line(), timeout=10)).text)
            return found

    return await asyncio.gather(*map(ask, processes))


def merged(records: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    """Call → value, from all replicas."""
    return {int(number): value for record in records for number, value in record[key].items()}
