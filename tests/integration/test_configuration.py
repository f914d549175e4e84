"""What is laid over a graph file, and deployments that run elsewhere, with real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.integration.alone import alone
from tests.integration.up import Project, toolkit, up, wait_gone, watch

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


PROGRAM = """
import os, sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

if sys.argv[1:] == ["fail"]:
    sys.exit("no tags here")
server = grpc.server(futures.ThreadPoolExecutor(4))
say = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("services.echo.v1.Echo", {"Say": say}),))
checks = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(checks, server)
assert server.add_insecure_port(sys.argv[1]) and sys.argv[1] == os.environ["TOOLKIT_LISTEN"]
server.start()
checks.set("", health_pb2.HealthCheckResponse.SERVING)
print("tagger", os.getpid(), os.environ["LEVEL"], flush=True)
server.wait_for_termination()
"""


def program(project: Project, argument: str) -> Path:
    (project.folder / "tagger.py").write_text(PROGRAM)
    command = f'[{sys.executable}, tagger.py, "{argument}"]'
    return project.write(f"{CALLER}\nleaf: {{command: {command}, env: {{LEVEL: info}}}}")


def test_a_program_in_any_language_is_started_watched_called_and_stopped(project: Project) -> None:
    path = program(project, "{listen}")
    checked = toolkit("check", str(path), folder=project.folder)
    assert (checked.returncode, checked.stdout) == (0, "ok: test: deployments 2, edges 1\n")
    with up(path) as running:
        said = running.wait_line("tagger ").split()
        assert said[-1] == "info"
        running.wait_ready()
        called = toolkit("call", "Say", '{"text": "hi"}', "--graph", "graph.yaml", folder=project.folder)
        assert json.loads(called.stdout)["text"] == "hi"
        with watch([int(said[-2])]) as programs:
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0
            assert wait_gone(programs, 0)
    assert running.errors == []


def test_a_program_does_not_outlive_a_launcher_that_is_killed(project: Project) -> None:
    with up(program(project, "{listen}")) as running:
        pid = int(running.wait_line("tagger ").split()[-2])
        running.wait_ready()
        with watch([pid]) as programs:
            for keeper in running.replicas():
                os.kill(keeper, signal.SIGSTOP)  # it has no time to see to its program
            running.process.kill()
            assert wait_gone(programs, 2)


def test_a_program_that_dies_is_started_again(project: Project) -> None:
    with up(program(project, "{host}:{port}")) as running:
        first = int(running.wait_line("tagger ").split()[-2])
        running.wait_ready()
        os.kill(first, signal.SIGKILL)
        second = int(running.wait_line("tagger ").split()[-2])
        assert second != first
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_a_program_that_cannot_start_ends_the_graph_with_one_line(project: Project) -> None:
    with up(program(project, "fail")) as running:
        running.wait_line("no tags here")
        assert running.wait_exit() == 1
    assert [line for line in running.errors if "exited with code 1 before it was ready" in line]


def test_a_program_that_is_not_there_is_named(project: Project) -> None:
    with up(project.write(f"{CALLER}\nleaf: {{command: [./nothing]}}")) as running:
        assert running.wait_exit() == 1
    assert any("./nothing cannot be started: No such file or directory" in line for line in running.errors)
