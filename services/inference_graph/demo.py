"""`python -m services.inference_graph.demo [SENTENCE]`: bring the graph up, ask it once, print the answer, take it down.

The answer is JSON on standard output; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from services.inference_graph.v1.inference_graph_toolkit import InferenceGraphClient, ScoreReply, ScoreRequest
from toolkit.connect import connect
from toolkit.contract import wait_serving
from toolkit.errors import ServiceError, ToolkitError
from toolkit.launcher.manifest import load_graph

GRAPH = Path(__file__).with_name("graph.yaml")
HOST = "127.0.0.1"


async def run(sentence: str) -> ScoreReply:
    """The graph's answer. Raises ToolkitError when the graph does not come up, ServiceError when the call fails."""
    graph = load_graph(GRAPH)
    port = graph.port(graph.entry)
    assert port is not None, "an entry always has a port"
    _check_free(port)  # else whoever listens there would answer in the graph's place
    async with running_graph() as up:
        await _wait_ready(f"{HOST}:{port}", up)
        async with connect(InferenceGraphClient, f"{HOST}:{port}") as client:
            return await client.generate_score(ScoreRequest(sentence=sentence), timeout=120)


@asynccontextmanager
async def running_graph() -> AsyncIterator[Process]:
    """`toolkit up`, stopped and waited for at the end."""
    toolkit = Path(sys.executable).with_name("toolkit")
    up = await asyncio.create_subprocess_exec(
        toolkit, "up", GRAPH, stdin=asyncio.subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
    )  # a session of its own: a Ctrl-C is for us, and we pass it on once
    try:
        yield up
    finally:
        if up.returncode is None:
            up.terminate()
            await up.wait()


async def _wait_ready(address: str, up: Process) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        serving = asyncio.create_task(wait_serving(channel, InferenceGraphClient.__contract__.name))
        ended = asyncio.create_task(up.wait())  # with its own words on standard error; it has a limit of its own, too
        try:
            await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            ended.cancel()
    if up.returncode is not None:
        raise ToolkitError(f"the graph did not come up: toolkit up ended with exit code {up.returncode}")


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ToolkitError(
                f"{HOST}:{port} cannot be used ({error.strerror}): stop what listens there, perhaps a graph in another "
                f"terminal, or change `port` in {GRAPH}"
            ) from None


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
