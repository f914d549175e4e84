"""The first command of the README, with real models and real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "services.inference_graph.demo"]
GRAPHS = sorted((ROOT / "services/inference_graph").glob("*.yaml"))

pytestmark = pytest.mark.integration


@pytest.fixture
def mark() -> dict[str, str]:
    """An environment that all processes of this test inherit, and none else."""
    return {"DEMO_TEST": uuid.uuid4().hex}


def left_running(mark: dict[str, str]) -> list[str]:
    """The command lines of the processes that carry the mark; only where there is /proc."""
    ((name, value),) = mark.items()
    wanted = f"{name}={value}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
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
    assert left_running(mark) == []


def test_a_demo_that_is_stopped_takes_its_graph_down(mark: dict[str, str]) -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=os.environ | mark, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        next(line for line in demo.stderr if "loading" in line)  # the replicas have started
        demo.send_signal(signal.SIGTERM)
        printed, log = demo.communicate(timeout=60)
    assert (demo.returncode, printed) == (130, ""), log
    assert left_running(mark) == []


@pytest.mark.parametrize("graph", GRAPHS, ids=[graph.name for graph in GRAPHS])
def test_the_graph_files_fit_their_classes(graph: Path) -> None:
    toolkit = Path(sys.executable).with_name("toolkit")
    done = subprocess.run([toolkit, "check", graph], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "deployments 4, edges 3" in done.stdout
