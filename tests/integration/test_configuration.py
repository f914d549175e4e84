"""What is laid over a graph file, and deployments that run elsewhere, with real processes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.integration.alone import alone
from tests.integration.up import Project, toolkit, up

pytestmark = pytest.mark.integration

CALLER = 'entry: {class: "classes:Caller", port: PORT}'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def answering_process(project: Project) -> int:
    called = toolkit("call", "Say", '{"text": "hi"}', "--graph", "graph.yaml", folder=project.folder)
    assert (called.returncode, called.stderr) == (0, "")
    return int(json.loads(called.stdout)["number"])


@pytest.mark.parametrize("prefix", ["dns:///localhost:", "127.0.0.1:"])
def test_a_deployment_that_runs_elsewhere_is_called_and_left_alone(project: Project, prefix: str) -> None:
    project.write(CALLER)
    with alone("classes:Leaf", "--listen", "127.0.0.1:0", folder=project.folder) as leaf:
        (address,) = leaf.wait_ready()
        path = project.write(f"{CALLER}\nleaf: {{url: '{prefix}{address.rpartition(':')[2]}'}}")
        checked = toolkit("check", str(path), folder=project.folder)
        assert (checked.returncode, checked.stdout) == (0, "ok: test: deployments 1, edges 0\n")
        with up(path) as running:
            assert "(1 replica, " in running.wait_ready()
            assert answering_process(project) == leaf.process.pid
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0
        assert leaf.process.poll() is None


def test_a_file_makes_a_deployment_of_ours_one_that_runs_elsewhere(project: Project) -> None:
    path = project.write(f'{CALLER}\nleaf: {{class: "classes:Leaf", device: cpu, resources: {{cpus: 1}}}}')
    with alone("classes:Leaf", "--listen", "127.0.0.1:0", folder=project.folder) as leaf:
        (address,) = leaf.wait_ready()
        override = project.folder / "production.yaml"
        override.write_text(f"services: {{leaf: {{url: '{address}'}}}}")
        with up(path, "-f", str(override), "--set", "entry.env.LEVEL=debug") as running:
            assert "LEVEL=debug (env of the graph file)" in running.wait_line("entry | ")
            running.wait_ready()
            assert answering_process(project) == leaf.process.pid
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0


def test_what_runs_elsewhere_and_serves_something_else_stops_the_start(project: Project) -> None:
    project.write(CALLER)
    (project.folder / "other.py").write_text(
        "from services.scoring.v1.scoring_toolkit import ScoringBase\nclass Other(ScoringBase): pass\n"
    )
    with alone("other:Other", "--listen", "127.0.0.1:0", "--reflection", folder=project.folder) as other:
        (address,) = other.wait_ready()
        with up(project.write(f"{CALLER}\nleaf: {{url: '{address}'}}")) as running:
            assert running.wait_exit() == 1
            (error,) = running.errors
            assert "entry: handle leaf expects services.echo.v1.Echo" in error
            assert "services.scoring.v1.Scoring" in error
