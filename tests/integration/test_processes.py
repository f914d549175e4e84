"""Deployments that share a process: they come up, are called, die, are replaced and go as one."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_commands import Caller
from tests.integration.test_configuration import PROGRAM
from tests.integration.up import Project, Running, toolkit, up, wait_gone, watch

pytestmark = pytest.mark.integration

CLASSES = """
import os
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.service import depends


class Leaf(EchoBase):
    async def say(self, request, context):
        return Note(text=f"{request.text} leaf-{os.getpid()}")


class Middle(EchoBase):
    leaf = depends(EchoClient)

    async def say(self, request, context):
        return await self.leaf.say(Note(text=f"{request.text} middle-{os.getpid()}"))


class Entry(EchoBase):
    middle = depends(EchoClient)
    leaf = depends(EchoClient)

    async def say(self, request, context):
        callee = self.leaf if request.text == "leaf" else self.middle
        return await callee.say(Note(text=f"entry-{os.getpid()}"))
"""
SERVICES = """
leaf: {class: "own:Leaf", process: pair}
entry: {class: "own:Entry", port: PORT}
middle: {class: "own:Middle", process: pair}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def write(project: Project, services: str = SERVICES, classes: str = CLASSES) -> Path:
    (project.folder / "own.py").write_text(classes)
    return project.write(services)


def ask(project: Project, text: str = "") -> dict[str, int]:
    """Which process each deployment answered from."""
    done = toolkit("call", "Say", json.dumps({"text": text}), "--graph", "graph.yaml", folder=project.folder)
    assert (done.returncode, done.stderr) == (0, "")
    steps = (step.split("-") for step in json.loads(done.stdout)["text"].split())
    return {name: int(pid) for name, pid in steps}


def do(project: Project, *arguments: str) -> str:
    done = toolkit(*arguments, folder=project.folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(project: Project) -> list[dict[str, Any]]:
    return [json.loads(line) for line in do(project, "ps", "--json").splitlines()]


def end(running: Running) -> None:
    """A clean stop that leaves nobody."""
    with watch(running.replicas()) as replicas:
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
        assert wait_gone(replicas, 0)


def test_two_deployments_are_one_process_with_its_life(project: Project) -> None:
    with up(write(project)) as running:
        assert "(2 replicas, " in running.wait_ready()
        pids = ask(project)
        assert (pids["middle"], len(set(pids.values()))) == (pids["leaf"], 2)
        assert ask(project, "leaf") == {"entry": pids["entry"], "leaf": pids["leaf"]}
        os.kill(pids["leaf"], signal.SIGKILL)
        running.wait_line("error: pair: was ended by SIGKILL while it served")
        running.wait_line("pair#2 | ready after")
        again = ask(project)
        assert again["middle"] == again["leaf"] != pids["leaf"]
        assert ask(project, "leaf")["leaf"] == again["leaf"]
        assert [(row["name"], row["deployments"]) for row in rows(project)] == [
            ("pair#2", ["leaf", "middle"]),
            ("entry", ["entry"]),
        ]
        assert "pair#2 (leaf, middle)" in do(project, "ps")
        assert "pair#2 | " in do(project, "logs", "middle")
        end(running)
    assert len(running.errors) == 1


def test_no_call_is_lost_when_a_shared_process_is_scaled_and_replaced(project: Project) -> None:
    with up(write(project)) as running:
        running.wait_ready()
        caller = Caller(project)
        try:
            do(project, "scale", "leaf=2")
            assert [row["name"] for row in rows(project)] == ["pair", "pair.1", "entry"]
            do(project, "restart", "middle")
            assert [row["name"] for row in rows(project)] == ["pair#2", "pair.1#2", "entry"]
            do(project, "scale", "pair=1")
            pids = ask(project)
            assert pids["middle"] == pids["leaf"]
        finally:
            count, wrong = caller.finish()
        assert (count > 0, wrong) == (True, "[]")
        end(running)
    assert running.errors == []


def test_a_start_that_fails_names_the_member_and_ends_the_graph(project: Project) -> None:
    broken = CLASSES.replace("class Leaf(EchoBase):", "class Leaf(EchoBase):\n    def __init__(self): 1 / 0\n")
    with up(write(project, classes=broken)) as running:
        assert running.wait_exit() == 1
    assert running.errors == ["error: pair: leaf: Leaf cannot be made: ZeroDivisionError: division by zero"]


def test_a_change_of_one_member_replaces_the_process_and_of_a_program_the_program(project: Project) -> None:
    (project.folder / "tagger.py").write_text(PROGRAM)
    (project.folder / "other.py").write_text("from own import Leaf as First\n\n\nclass Other(First): pass\n")
    command = f'[{sys.executable}, tagger.py, "{{listen}}"]'
    services = f"""
leaf: {{command: {command}, env: {{LEVEL: info}}}}
entry: {{class: "own:Entry", port: PORT, process: front, bind: {{leaf: other}}}}
other: {{class: "other:Other", process: front}}
middle: {{class: "classes:Caller"}}
"""
    with up(write(project, services), "--watch") as running:
        running.wait_ready()
        first = ask(project, "leaf")
        assert first["entry"] == first["leaf"]
        (project.folder / "other.py").write_text("from own import Leaf as First\n\n\nclass Other(First): ...\n")
        running.wait_line("other.py changed: replacing front (entry, other)")
        running.wait_line("front   | stopped")
        second = ask(project, "leaf")
        assert second["entry"] == second["leaf"] != first["leaf"]
        (project.folder / "tagger.py").write_text(PROGRAM.replace("tagger", "second"))
        running.wait_line("tagger.py changed: replacing leaf")
        program = int(running.wait_line("second ").split()[-2])
        running.wait_line("leaf    | stopped")
        with watch([program]) as programs:
            do(project, "restart", "leaf")
            assert wait_gone(programs, 0)
        assert list(ask(project)) == ["entry"]
        do(project, "restart", "other")
        assert {row["name"] for row in rows(project)} == {"leaf#3", "front#3", "middle"}
        third = ask(project, "leaf")
        broken = "from own import Leaf as First\n\n\nclass Other(First):\n    def __init__(self): 1 / 0\n"
        (project.folder / "other.py").write_text(broken)
        running.wait_line("error: front#3 goes on serving")
        assert ask(project, "leaf") == third
        end(running)
    assert running.errors[0] == "error: front#4: other: Other cannot be made: ZeroDivisionError: division by zero"
    assert len(running.errors) == 2
