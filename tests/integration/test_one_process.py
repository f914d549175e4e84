"""`toolkit up --one-process`: a whole graph in one process that has the terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.up import Project, environ, toolkit, up, wait_gone, watch

pytestmark = pytest.mark.integration

CLASSES = """
import os
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.errors import Code, ServiceError
from toolkit.service import depends


class Leaf(EchoBase):
    async def say(self, request, context):
        if request.text == "fail":
            raise ServiceError(Code.NOT_FOUND, "not here")
        if request.text == "stop here":
            breakpoint()
        return Note(text=f"{os.getpid()} {context.deadline is not None}")


class Caller(EchoBase):
    leaf = depends(EchoClient)

    async def say(self, request, context):
        reply = await self.leaf.say(request)
        return Note(text=f"{os.getpid()} {reply.text}")


class Broken(EchoBase):
    def __init__(self):
        raise RuntimeError("no weights here")
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def write(project: Project, services: str) -> Path:
    path = project.write(services)
    (project.folder / "classes.py").write_text(CLASSES)
    return path


def say(project: Project, text: str) -> subprocess.CompletedProcess[str]:
    return toolkit("call", "Say", json.dumps({"text": text}), "--graph", "graph.yaml", folder=project.folder)


PAIR = 'leaf: {class: "classes:Leaf"}\nentry: {class: "classes:Caller", port: PORT}'


def test_all_deployments_are_one_process_with_the_errors_and_the_path_of_many(project: Project) -> None:
    with up(write(project, PAIR), "--one-process") as running:
        assert f"ready: test on 127.0.0.1:{project.port}, in one process" in running.wait_line("ready: ")
        (pid,) = running.replicas()
        assert json.loads(say(project, "hi").stdout)["text"] == f"{pid} {pid} True"
        failed = say(project, "fail")
        assert failed.returncode == 1
        assert "NOT_FOUND: not here" in failed.stderr
        assert "leaf" in failed.stderr
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert running.errors == []


def test_a_killed_launcher_leaves_nothing(project: Project) -> None:
    with up(write(project, PAIR), "--one-process") as running:
        running.wait_ready()
        with watch(running.replicas()) as replicas:
            running.signal(signal.SIGKILL)
            assert wait_gone(replicas, 20)


def test_what_stops_a_start_names_the_deployment(project: Project) -> None:
    with up(write(project, PAIR.replace("classes:Leaf", "classes:Broken")), "--one-process") as running:
        assert running.wait_exit() == 1
    assert running.errors == ["error: leaf: Broken cannot be made: RuntimeError: no weights here"]


@contextmanager
def on_terminal(path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """It has a terminal of its own, as in a shell: Ctrl-C typed there reaches all of its processes."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", _ADOPT, sys.executable, "-m", "toolkit", "up", str(path), "--one-process"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=path.parent, env=environ(), start_new_session=True
    )
    os.close(theirs)
    try:
        yield process, Terminal(ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


_ADOPT = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._said = b""

    def wait(self, part: str) -> None:
        """Read on until `part` has been shown."""
        while part.encode() not in self._said:
            chunk = os.read(self._fd, 4096)
            assert chunk, self._said.decode()
            self._said += chunk
        self._said = self._said.partition(part.encode())[2]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())


def test_ctrl_c_at_the_terminal_drains(project: Project) -> None:
    with on_terminal(write(project, PAIR)) as (process, terminal):
        terminal.wait("ready: ")
        terminal.type("\x03")
        assert process.wait() == 0


def test_a_breakpoint_stops_at_the_terminal(project: Project) -> None:
    path = write(project, PAIR)
    with on_terminal(path) as (process, terminal):
        terminal.wait("ready: ")
        call = [sys.executable, "-m", "toolkit", "call", "Say", '{"text": "stop here"}', "--graph", "graph.yaml"]
        with subprocess.Popen(call, cwd=project.folder, env=environ(), stdout=subprocess.PIPE, text=True) as calling:
            terminal.wait("(Pdb) ")
            terminal.type("p request.text.upper()\n")
            terminal.wait("'STOP HERE'")
            terminal.type("continue\n")
            answer, _ = calling.communicate()
        assert "True" in json.loads(answer)["text"]
        process.send_signal(signal.SIGTERM)  # once pdb was there, Ctrl-C is its own: back to its prompt
        assert process.wait() == 0
