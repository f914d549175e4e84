"""`python -m services.inference_graph.demo [SENTENCE]`: bring the graph up, ask it once, print the answer, take it down.

The answer is JSON on standard output; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.inference_graph.v1.inference_graph_toolkit import InferenceGraphClient, ScoreReply, ScoreRequest
from toolkit.connect import connect
from toolkit.errors import ServiceError, ToolkitError
from toolkit.launcher.addresses import pick_free_port
from toolkit.launcher.folder import project_folder
from toolkit.launcher.security import LOOPBACK

GRAPH = Path(__file__).with_name("graph.yaml")


async def run(sentence: str) -> ScoreReply:
    """The graph's answer. Raises ToolkitError when the graph does not come up, ServiceError when the call fails."""
    port = pick_free_port()  # the one in the graph file may be in use, by another graph even
    with graph_file(port) as path:
        async with running(path) as up:
            await _wait_ready(f"{LOOPBACK}:{port}", up)
            async with connect(InferenceGraphClient, f"{LOOPBACK}:{port}") as client:
                return await client.generate_score(ScoreRequest(sentence=sentence), timeout=120)


@contextmanager
def graph_file(port: int) -> Iterator[Path]:
    """`graph.yaml` with another port for its entry, somewhere in the project for as long as the block lasts."""
    graph = yaml.safe_load(GRAPH.read_text())
    graph["services"][graph["entry"]]["port"] = port
    cache = project_folder(GRAPH) / ".cache"
    cache.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="demo-", dir=cache) as folder:
        path = Path(folder, GRAPH.name)
        path.write_text(yaml.safe_dump(graph, sort_keys=False))
        yield path


@asynccontextmanager
async def running(graph: Path) -> AsyncIterator[Process]:
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


async def _wait_ready(address: str, up: Process) -> None:
    serving = asyncio.create_task(_wait_serving(address))
    ended = asyncio.create_task(up.wait())  # with its own words on standard error; it has a limit of its own, too
    try:
        await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
    finally:
        serving.cancel()
        ended.cancel()
    if up.returncode is not None:
        raise ToolkitError(f"the graph did not come up: toolkit up ended with exit code {up.returncode}")


async def _wait_serving(address: str) -> None:
    """Any gRPC server says so itself: https://grpc.io/docs/guides/health-checking/."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 500)]) as channel:
        question = health_pb2.HealthCheckRequest(service=InferenceGraphClient.__contract__.name)
        health: Any = health_pb2_grpc.HealthStub(channel)  # ships no types
        async for answer in health.Watch(question, wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return


async def _main(sentence: str) -> None:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    reply = await run(sentence)
    results = [{**dataclasses.asdict(each), "score": round(each.score, 4)} for each in reply.results]
    sys.stdout.write(json.dumps({"sentence": sentence, "results": results}, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    """Exit code 0 after an answer, 1 without one, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Ask the inference graph once.")
    parser.add_argument("sentence", nargs="?", default="I have an idea!", help="what the generators continue")
    options = parser.parse_args()
    try:
        asyncio.run(_main(options.sentence))
    except (ToolkitError, ServiceError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except asyncio.CancelledError:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
