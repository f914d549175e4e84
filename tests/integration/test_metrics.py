"""Real graphs, and what Prometheus reads of them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Line, Note
from tests.integration.up import Project, toolkit, up
from tests.ports import pick_port
from toolkit.connect import connect
from toolkit.errors import ServiceError
from toolkit.metrics import METRICS

pytestmark = pytest.mark.integration

ECHO = "services.echo.v1.Echo"
CLASSES = """
import asyncio
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Line
from toolkit.batching import batched
from toolkit.service import depends


class Batches(EchoBase):
    @batched(max_size=4)
    async def ping(self, requests, context):
        await asyncio.sleep(0.05)
        return requests


class Asks(EchoBase):
    leaf = depends(EchoClient)

    async def ping(self, request, context):
        return await self.leaf.ping(request)
"""
SERVICES = 'leaf: {class: "metered:Batches"}\nentry: {class: "metered:Asks", port: PORT}'
CALLS = 21
PATHS = [method.path[1:] for method in EchoBase.__contract__.methods]
Figures = dict[str, dict[tuple[str, ...], float]]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "metered.py").write_text(CLASSES)
    return Project(tmp_path)


def read(port: int) -> Figures:
    """Name of a sample → values of its labels, sorted by the labels' names → number. Each name and label is a known one."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    figures: Figures = {}
    for family in families:
        known = METRICS[family.name if family.type != "counter" else f"{family.name}_total"]
        for sample in family.samples:
            assert sample.labels.get("grpc_method", PATHS[0]) in PATHS
            assert {*sample.labels} <= {"deployment", "replica", "le", *known.labels}
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert labels not in figures.setdefault(sample.name, {}), "each is told once"
            figures[sample.name][labels] = sample.value
    return figures


def read_until(port: int, is_there: Callable[[Figures], bool]) -> Figures:
    """Replicas say every second what they have measured."""
    until = time.monotonic() + 30
    while not is_there(found := read(port)):
        assert time.monotonic() < until, found
        time.sleep(0.1)
    return found


async def call(port: int) -> None:
    async with connect(EchoClient, f"127.0.0.1:{port}") as echo:
        hostile = {"x-request-id": 'a"} 1', "grpc_method": "x", "traceparent": "00-1"}
        await asyncio.gather(*(echo.ping(Line(number=n), metadata=hostile) for n in range(CALLS)))
        with pytest.raises(ServiceError, match="UNIMPLEMENTED"):
            await echo.say(Note())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for path in (f"/{ECHO}/Nope", "/x.Y/Z", '/"} 1/x'):
            with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
                await channel.unary_unary(path)(b"", timeout=10)


def test_the_whole_graph_is_read_at_one_place(project: Project) -> None:
    port = pick_port()
    with up(project.write(SERVICES), "--metrics", f"127.0.0.1:{port}") as running:
        running.wait_line(f"metrics on http://127.0.0.1:{port}/metrics")
        running.wait_ready()
        asyncio.run(call(project.port))
        ping = f"{ECHO}/Ping"
        ended = {
            ("entry", ping, "OK", "entry"): CALLS,
            ("entry", f"{ECHO}/Say", "UNIMPLEMENTED", "entry"): 1,
            ("leaf", ping, "OK", "leaf"): CALLS,
        }
        found = read_until(port, lambda figures: figures.get("grpc_server_call_duration_seconds_count") == ended)
        assert found["grpc_client_attempt_duration_seconds_count"] == {
            ("entry", ping, "OK", "leaf", "leaf", "entry"): CALLS
        }
        batch = ("leaf", ping, "leaf")
        batches = found["toolkit_batch_size_count"][batch]
        assert CALLS / 4 <= batches <= CALLS
        assert found["toolkit_batch_size_sum"][batch] == CALLS
        assert found["toolkit_batch_compute_seconds_count"][batch] == batches
        assert found["toolkit_batch_compute_seconds_sum"][batch] >= 0.04 * batches  # timers may be a little early
        assert found["toolkit_server_queue_seconds_count"][batch] == CALLS
        assert found["toolkit_server_inflight"] == {("entry", "entry"): 0, ("leaf", "leaf"): 0}
        assert found["toolkit_replicas"]["leaf", "ready"] == 1
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_a_replica_that_takes_another_s_place_is_counted_by_itself(project: Project) -> None:
    port = pick_port()
    path = project.write(SERVICES)
    path.write_text(path.read_text() + f"metrics: {{port: {port}}}\n")
    with up(path) as running:
        running.wait_ready()
        asyncio.run(call(project.port))
        assert toolkit("restart", "leaf", "--graph", str(path), folder=project.folder).returncode == 0
        found = read_until(port, lambda figures: ("leaf", "leaf#2") in figures.get("toolkit_server_inflight", {}))
        assert ("leaf", "leaf") not in found["toolkit_server_inflight"]
        assert found["grpc_server_call_started_total"]["leaf", f"{ECHO}/Ping", "leaf#2"] == 0
        assert found["toolkit_replica_starts_total"] == {("leaf",): 2, ("entry",): 1}
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_deployments_that_share_a_process_are_told_apart(project: Project) -> None:
    port = pick_port()
    shared = SERVICES.replace('", port', '", process: pair, port').replace('"}', '", process: pair}')
    with up(project.write(shared), "--metrics", f"127.0.0.1:{port}") as running:
        running.wait_ready()
        asyncio.run(call(project.port))
        started = "grpc_server_call_started_total"
        found = read_until(
            port, lambda figures: figures.get(started, {}).get(("leaf", f"{ECHO}/Ping", "pair")) == CALLS
        )
        assert found[started]["entry", f"{ECHO}/Ping", "pair"] == CALLS
        assert found["toolkit_replicas"]["leaf", "ready"] == found["toolkit_replicas"]["entry", "ready"] == 1
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_all_deployments_of_one_process_are_read_of_it(project: Project) -> None:
    port = pick_port()
    with up(project.write(SERVICES), "--one-process", "--metrics", f"127.0.0.1:{port}") as running:
        running.wait_ready()
        asyncio.run(call(project.port))
        found = read(port)
        assert found["grpc_server_call_started_total"]["leaf", f"{ECHO}/Ping"] == CALLS
        assert found["grpc_server_call_started_total"]["entry", f"{ECHO}/Ping"] == CALLS
        os.kill(running.process.pid, signal.SIGTERM)
        assert running.wait_exit() == 0


def test_a_port_that_is_taken_is_one_line_before_anything_starts(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with up(project.write(SERVICES), "--metrics", where) as running:
            assert running.wait_exit() == 5
    assert running.errors == [
        f"error: metrics: cannot listen on {where}: it is taken; stop whoever holds it, or name another port"
    ]
    assert not any("starting" in line for line in running.said)


def test_a_place_that_is_none_is_a_wrong_command(project: Project) -> None:
    done = toolkit("up", str(project.write(SERVICES)), "--metrics", "9464", folder=project.folder)
    assert done.returncode == 2
    assert "--metrics 9464: write HOST:PORT" in done.stderr
