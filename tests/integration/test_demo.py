"""The first command of the README, with real models and real processes."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "services.inference_graph.demo"]
GRAPHS = sorted((ROOT / "services/inference_graph").glob("*.yaml"))
HOLDS_A_GRAPH = """
import asyncio, sys
from services.echo.v1.echo_toolkit import EchoClient
from toolkit.testing import graph_in_processes

async def main():
    async with graph_in_processes(sys.argv[1], EchoClient):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

pytestmark = pytest.mark.integration


@pytest.fixture
def mark() -> dict[str, str]:
    """An environment that all processes of this test inherit, and none else."""
    return {"DEMO_TEST": uuid.uuid4().hex}


def left_running(mark: dict[str, str]) -> dict[int, str]:
    """The processes that carry the mark, and their command lines; only where there is /proc."""
    ((name, value),) = mark.items()
    wanted = f"{name}={value}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text()
        except OSError:  # ended meanwhile, or another user's
            continue
    return found


def test_the_demo_prints_drafts_with_scores_and_leaves_nothing_running(mark: dict[str, str]) -> None:
    done = subprocess.run(
        [*DEMO, "The storm took the bridge, so we"],
        cwd=ROOT,
        env=os.environ | mark,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["sentence"] == "The storm took the bridge, so we"
    assert [result["generator"] for result in answer["results"]] == ["gpt2", "distilgpt2"]
    for result in answer["results"]:
        assert result["text"].strip()
        assert -1 <= result["score"] <= 1
    assert "ready: inference-graph" in done.stderr
    assert left_running(mark) == {}


@pytest.mark.parametrize("demo", sorted(path.parent.name for path in (ROOT / "services").glob("*/demo.py")))
def test_a_demo_that_is_asked_for_help_starts_nothing(demo: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"services.{demo}.demo", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


def test_a_demo_that_is_stopped_takes_its_graph_down(mark: dict[str, str]) -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=os.environ | mark, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        next(line for line in demo.stderr if "loading" in line)  # the replicas have started
        demo.send_signal(signal.SIGTERM)
        printed, log = demo.communicate(timeout=60)
    assert (demo.returncode, printed) == (130, ""), log
    assert left_running(mark) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone shows the environment of processes")
def test_a_program_that_is_killed_takes_its_graph_down(mark: dict[str, str], tmp_path: Path) -> None:
    graph = tmp_path / "graph.yaml"
    graph.write_text('{name: t, entry: echo, services: {echo: {class: "services.echo.service:Echo"}}}')
    command = [sys.executable, "-c", HOLDS_A_GRAPH, str(graph)]
    environ = os.environ | mark | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        left = [os.pidfd_open(pid) for pid in left_running(mark) if pid != program.pid]
        assert len(left) >= 2  # the launcher, the replica
        program.kill()
    for process in left:
        assert select.select([process], [], [], 60)[0], left_running(mark)
        os.close(process)
    assert left_running(mark) == {}


@pytest.mark.parametrize("graph", GRAPHS, ids=[graph.name for graph in GRAPHS])
def test_the_graph_files_fit_their_classes(graph: Path) -> None:
    toolkit = Path(sys.executable).with_name("toolkit")
    done = subprocess.run([toolkit, "check", graph], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "deployments 4, edges 3" in done.stdout
