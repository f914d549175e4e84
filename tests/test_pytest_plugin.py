"""The fixtures, in a pytest of their own, as a user's project has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CONFTEST = 'pytest_plugins = ["toolkit.pytest_plugin"]\n'
GRAPH = """
name: t
entry: top
services:
  left: {class: "services.echo.service:Echo"}
  top: {class: "services.echo.service:Echo"}
"""
TESTS = """
import pytest
from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient, Note
from services.external.service import Matcher
from services.external.v1.external_toolkit import BestRequest, MatcherClient
from services.scoring.v1.scoring_toolkit import ScoringClient, Similarity
from toolkit.errors import ServiceError
from toolkit.testing import fake

left = []


class Leaves(Echo):
    async def __aexit__(self, kind, error, trace):
        left.append(self)


async def test_a_service(serving):
    scoring = fake(ScoringClient, score=Similarity(value=1))
    matcher = await serving(Matcher(), MatcherClient, handles={"scoring": scoring})
    assert (await matcher.best(BestRequest(text="a", candidates=["b"]))).candidate == "b"
    await serving(Leaves(), EchoClient)
    assert not left


async def test_it_has_ended_with_its_test():
    assert len(left) == 1


async def test_a_graph_here(in_process):
    echo = await in_process("graph.yaml", EchoClient)
    assert await echo.say(Note(text="t")) == Note(text="t")


async def test_a_graph_in_processes(in_processes):
    echo = await in_processes("graph.yaml", EchoClient, "--set", "left.replicas=2")
    assert await echo.say(Note(text="t"), timeout=10) == Note(text="t")
"""


def test_what_the_fixtures_start_ends_with_its_test(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "graph.yaml").write_text(GRAPH)
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nasyncio_mode = "auto"\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "."]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
