"""What the examples' demos share: a graph comes up on a port of its own, is asked, and goes down again."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import grpc.aio
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from toolkit.client import Client
from toolkit.connect import connect
from toolkit.errors import ServiceError, ToolkitError
from toolkit.launcher.addresses import pick_free_port
from toolkit.launcher.folder import project_folder
from toolkit.launcher.security import LOOPBACK

C = TypeVar("C", bound=Client)


@asynccontextmanager
async def running(graph: Path, client: type[C]) -> AsyncIterator[C]:
    """A client of the graph's entry, for as long as the block lasts. Raises ToolkitError when the graph does not come up."""
    port = pick_free_port()  # the one in the graph file may be in use, by another graph even
    address = f"{LOOPBACK}:{port}"
    with _copy(graph, port) as path:
        async with _up(path) as up:
            await _wait_ready(client, address, up)
            async with connect(client, address) as found:
                yield found


def main(demo: Callable[[], Awaitable[None]]) -> int:
    """Run a demo to its end. Exit code 0 after an answer, 1 without one, 130 when interrupted."""
    try:
        asyncio.run(_interruptible(demo))
    except (ToolkitError, ServiceError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except asyncio.CancelledError:
        return 130
    return 0


async def _interruptible(demo: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    await demo()


@contextmanager
def _copy(graph: Path, port: int) -> Iterator[Path]:
    """The graph file with another port for its entry, somewhere in the project for as long as the block lasts."""
    values = yaml.safe_load(graph.read_text())
    values["services"][values["entry"]]["port"] = port
    cache = project_folder(graph) / ".cache"
    cache.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="demo-", dir=cache) as folder:
        path = Path(folder, graph.name)
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        yield path


@asynccontextmanager
async def _up(graph: Path) -> AsyncIterator[Process]:
    """`toolkit up`, stopped and waited for at the end."""
    toolkit = Path(sys.executable).with_name("toolkit")
    up = await asyncio.create_subprocess_exec(
        toolkit, "up", graph, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )  # a session of its own: a Ctrl-C is for us, and we pass it on once
    try:
        yield up
    finally:
        if up.returncode is None:
            up.terminate()
            await up.wait()


async def _wait_ready(client: type[Client], address: str, up: Process) -> None:
    serving = asyncio.create_task(_wait_serving(client.__contract__.name, address))
    ended = asyncio.create_task(up.wait())  # with its own words on standard error; it has a limit of its own, too
    try:
        await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        serving.cancel()
        ended.cancel()
    if up.returncode is not None:
        raise ToolkitError(f"the graph did not come up: toolkit up ended with exit code {up.returncode}")


async def _wait_serving(service: str, address: str) -> None:
    """Any gRPC server says so itself: https://grpc.io/docs/guides/health-checking/."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 500)]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # ships no types
        async for answer in health.Watch(health_pb2.HealthCheckRequest(service=service), wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
