"""Each system as a front and a back process of its own, and how its front is asked to do a work."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
import uuid
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from scripts.benchmark.peers.environments import BENTOML, RAY, UnavailableError, environment
from scripts.benchmark.peers.ours import GRAPH
from scripts.benchmark.peers.work import Found, Work
from services.echo.v1.echo_toolkit import EchoClient, Line
from toolkit import __version__
from toolkit.connect import connect
from toolkit.launcher.addresses import pick_free_port

ROOT: Final = Path(__file__).parents[3]
HERE: Final = Path(__file__).parent
START_TIMEOUT: Final = 120.0
STOP_TIMEOUT: Final = 15.0
ASK_TIMEOUT: Final = 60.0
MARK: Final = "PEERS_MARK"

Ask = Callable[[Work], Awaitable[Found]]


@dataclass(frozen=True, slots=True)
class System:
    title: str
    prepare: Callable[[], Awaitable[Path]]
    """Its Python, made when it is not there yet."""
    start: Callable[[Path], AbstractAsyncContextManager[Ask]]


@asynccontextmanager
async def ours(python: Path) -> AsyncIterator[Ask]:
    port = pick_free_port()
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "graph.yaml"
        graph.write_text(GRAPH.format(port=port))
        async with started(python, "-m", "toolkit", "up", graph, environ={}) as running:
            await running.wait_until(running.has_said("ready: "))
            async with connect(EchoClient, f"127.0.0.1:{port}") as front:

                async def ask(work: Work) -> Found:
                    reply = await front.ping(Line(text=json.dumps(asdict(work))), timeout=ASK_TIMEOUT)
                    return read(json.loads(reply.text))

                yield ask


@asynccontextmanager
async def bentoml(python: Path, environ: Mapping[str, str]) -> AsyncIterator[Ask]:
    port = str(pick_free_port())
    with tempfile.TemporaryDirectory() as folder:
        environ = {"BENTOML_HOME": folder, "BENTOML_DO_NOT_TRACK": "True", **environ}
        command = ("-m", "bentoml", "serve", "bentoml_service:Front", "--host", "127.0.0.1", "--port", port)
        async with started(python, *command, "--working-dir", HERE, environ=environ) as running:

            async def fetch(path: str, body: Any = None) -> bytes:
                data = None if body is None else json.dumps(body).encode()
                headers = {"content-type": "application/json"}
                request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", data, headers)
                return await asyncio.to_thread(_fetch, request)

            async def is_ready() -> bool:
                with suppress(OSError, HTTPException):
                    await fetch("readyz")
                    return True
                return False

            async def ask(work: Work) -> Found:
                return read(json.loads(await fetch("measure", {"asked": asdict(work)})))

            await running.wait_until(is_ready)
            yield ask


@asynccontextmanager
async def ray(python: Path, environ: Mapping[str, str]) -> AsyncIterator[Ask]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray-") as folder:  # short: it holds Unix sockets
        environ = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", **environ}
        async with started(python, "-m", "scripts.benchmark.peers.ray_app", answers=True, environ=environ) as running:
            await running.wait_until(running.has_said("peers: ready"))

            async def ask(work: Work) -> Found:
                return read(json.loads(await running.answer(json.dumps(asdict(work)))))

            yield ask


async def our_python() -> Path:
    return Path(sys.executable)


RAY_TUNED: Final = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 << 20),
}
SYSTEMS: Final = (
    System(f"grpc-model-toolkit {__version__}", our_python, ours),
    System(f"{BENTOML.title}, as shipped", partial(environment, BENTOML), partial(bentoml, environ={})),
    System(f"{BENTOML.title}, tuned", partial(environment, BENTOML), partial(bentoml, environ={"TUNED": "1"})),
    System(f"{RAY.title}, as shipped", partial(environment, RAY), partial(ray, environ={})),
    System(f"{RAY.title}, tuned", partial(environment, RAY), partial(ray, environ=RAY_TUNED)),
)


def read(found: Mapping[str, Any]) -> Found:
    return Found(**found)


@dataclass(frozen=True, slots=True)
class Running:
    process: Process
    log: Path

    async def wait_until(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Raises UnavailableError with its last words when it ends instead, or takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                while self.process.returncode is None:
                    if await is_ready():
                        return
                    await asyncio.sleep(0.1)
        raise UnavailableError(f"it did not become ready; its last words: {self._last_words()}")

    def has_said(self, words: str) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            return words in self._said()

        return check

    async def answer(self, line: str) -> bytes:
        """What it writes to standard output when it reads this line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        async with asyncio.timeout(ASK_TIMEOUT):
            answer = await self.process.stdout.readline()
        if not answer:
            raise UnavailableError(f"it ended; its last words: {self._last_words()}")
        return answer

    def _said(self) -> str:
        return self.log.read_text(errors="replace")

    def _last_words(self) -> str:
        lines = self._said().strip().splitlines()
        return lines[-1][:300] if lines else "none"


@asynccontextmanager
async def started(
    python: Path, *args: str | Path, environ: Mapping[str, str], answers: bool = False
) -> AsyncIterator[Running]:
    """A command in a process group of its own; at the end, none of the processes that came of it is left.

    All that it says goes to a log; with `answers`, what it writes to standard output is `Running.answer`.
    """
    mark = uuid.uuid4().hex
    environ = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}", "NO_COLOR": "1", MARK: mark, **environ}
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process = await asyncio.create_subprocess_exec(
            python, *args, stdin=PIPE, stdout=PIPE if answers else log, stderr=log, limit=1 << 22, start_new_session=True,
            env={**os.environ, **environ},
        )  # fmt: skip
        try:
            yield Running(process, Path(log.name))
        finally:
            await asyncio.shield(stop(process, mark))


async def stop(process: Process, mark: str) -> None:
    """SIGTERM first, so that it may clean up; what is left after a while is killed, wherever it went."""
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    until = time.monotonic() + STOP_TIMEOUT
    while (left := marked(mark)) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)


def marked(mark: str) -> list[int]:
    """The processes that inherited the mark; only where there is /proc."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _fetch(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=ASK_TIMEOUT) as reply:
        body: bytes = reply.read()
        return body
