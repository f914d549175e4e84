"""The verbs that speak to a running graph, from another terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.up import Project, begin, environ, toolkit, up, wait_gone, watch
from toolkit.launcher.state import read_run, state_folder

pytestmark = pytest.mark.integration

PAIR = 'leaf: {class: "classes:Leaf"}\nentry: {class: "classes:Caller", port: PORT}'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def rows(project: Project) -> list[dict[str, Any]]:
    done = toolkit("ps", "--json", folder=project.folder)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def names(project: Project) -> list[str]:
    return [row["name"] for row in rows(project)]


CALLER = """
import asyncio, sys
from services.echo.v1.echo_toolkit import EchoClient, Note
from toolkit.connect import connect

async def main(address):
    async with connect(EchoClient, address) as echo:
        print("calling", flush=True)
        count, wrong = 0, []
        end = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        while not end.done():
            try:
                await echo.say(Note(), timeout=20)
            except Exception as error:
                wrong.append(str(error))
            count += 1
            await asyncio.sleep(0.005)
        print(count, wrong, flush=True)

asyncio.run(main(sys.argv[1]))
"""


class Caller:
    """A process that calls the entry again and again, and keeps what went wrong."""

    def __init__(self, project: Project) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CALLER, f"127.0.0.1:{project.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ(),
            cwd=project.folder,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "calling\n"

    def finish(self) -> tuple[int, str]:
        out, _ = self.process.communicate("")
        count, _, wrong = out.strip().partition(" ")
        return int(count), wrong


@contextmanager
def detached(project: Project, services: str, *options: str) -> Iterator[list[str]]:
    """The lines that were said until all was ready."""
    path = project.write(services)
    done = toolkit("up", str(path), "-d", "--wait", *options, folder=project.folder)
    assert done.returncode == 0, done.stderr
    try:
        yield done.stderr.splitlines()
    finally:
        toolkit("down", folder=project.folder)


def test_a_graph_is_left_running_shown_restarted_scaled_and_taken_down(project: Project) -> None:
    """The story of a day, with somebody who calls all the time and notices nothing."""
    with detached(project, PAIR):
        found = rows(project)
        assert [(row["name"], row["state"], row["device"]) for row in found] == [
            ("leaf", "ready", "cpu"),
            ("entry", "ready", "cpu"),
        ]
        assert all(row["memory"] > 1 << 20 for row in found)
        caller = Caller(project)
        for arguments, expected in [
            (("restart", "leaf"), ["leaf#2", "entry"]),
            (("scale", "leaf=3"), ["leaf#2", "leaf.1", "leaf.2", "entry"]),
            (("scale", "leaf=1"), ["leaf#2", "entry"]),
            (("restart", "entry"), ["leaf#2", "entry#2"]),
        ]:
            done = toolkit(*arguments, folder=project.folder)
            assert (done.returncode, done.stdout) == (0, ""), done.stderr
            assert names(project) == expected
        count, wrong = caller.finish()
        assert wrong == "[]"
        assert count > 10
        run = read_run(state_folder(project.folder / "graph.yaml", environ()))
        assert run is not None
        with watch([run.pid]) as launcher:
            down = toolkit("down", folder=project.folder)
            assert (down.returncode, down.stdout) == (0, ""), down.stderr
            assert wait_gone(launcher, 5)
        assert toolkit("ps", folder=project.folder).returncode == 7


def test_what_takes_long_shows_how_far_it_is(project: Project) -> None:
    """Whoever waits at another terminal too: lines, or a table on a terminal."""
    (project.folder / "late.py").write_text(LATE)
    with detached(project, 'entry: {class: "late:Late", port: PORT}') as said:
        assert "entry | read weights 1/2" in said
        again = toolkit("restart", folder=project.folder)
        assert "entry#2 | read weights 1/2" in again.stderr.splitlines()
        seen = on_a_terminal("restart", folder=project.folder)
        assert b"entry#3" in seen
        assert b"read weights" in seen
        call = begin("call", "Say", "{}", "--graph", "graph.yaml", folder=project.folder)
        while not (project.folder / "begun").exists():
            pass
        down = begin("down", folder=project.folder)
        assert down.stderr is not None
        assert down.stderr.readline() == "entry#3 | draining\n"
        (project.folder / "end").touch()
        for each in (call, down):
            each.communicate()
            assert each.returncode == 0


def test_a_call_that_takes_long_says_so_on_a_terminal(project: Project) -> None:
    (project.folder / "late.py").write_text(LATE)
    with detached(project, 'entry: {class: "late:Late", port: PORT}'):
        said = f"wait for 127.0.0.1:{project.port}".encode()
        call = ("call", "Say", "{}", "--graph", "graph.yaml")
        assert said in on_a_terminal(*call, folder=project.folder, cue=(said, project.folder / "end"))


LATE = """
import asyncio, time
from pathlib import Path
from services.echo.v1.echo_toolkit import EchoBase
from toolkit.service import progress


class Late(EchoBase):
    def __init__(self):
        progress("read weights", 1, 2)
        time.sleep(1.5)

    async def say(self, request, context):
        Path("begun").touch()
        while not Path("end").exists():
            await asyncio.sleep(0.01)
        return request
"""


def on_a_terminal(*arguments: str, folder: Path, cue: tuple[bytes, Path] | None = None) -> bytes:
    """All that the verb shows there. `cue`: once it shows that, make this file."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *arguments],
        cwd=folder,
        env=environ(TERM="xterm", COLUMNS="120"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
            if cue is not None and cue[0] in seen:
                cue[1].touch()
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return seen


def test_ps_is_a_table(project: Project) -> None:
    with up(project.write(PAIR)) as running:
        running.wait_ready()
        head, leaf, entry = toolkit("ps", folder=project.folder).stdout.splitlines()
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert head.split() == [
        "NAME",
        "STATE",
        "DEVICE",
        "PID",
        "MEMORY",
        "UPTIME",
        "RESTARTS",
        "CALLS",
        "QUEUED",
        "ADDRESS",
    ]
    assert re.match(r"leaf   ready  cpu     \d+ +\d+ MiB  \d+s +0 ", leaf)
    assert entry.endswith(f"127.0.0.1:{project.port}")


def test_logs_outlive_the_graph(project: Project) -> None:
    with up(project.write(PAIR)) as running:
        running.wait_ready()
        assert toolkit("restart", "leaf", folder=project.folder).returncode == 0
        followed = subprocess.Popen(
            [sys.executable, "-m", "toolkit", "logs", "-f"],
            cwd=project.folder,
            env=environ(),
            stdout=subprocess.PIPE,
            text=True,
        )
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
        out, _ = followed.communicate()
    lines = out.splitlines()
    assert any(line.startswith("ready: test on ") for line in lines)
    assert lines[-1] == "leaf#2 | stopped"
    again = toolkit("logs", "leaf", folder=project.folder).stdout.splitlines()
    assert {line.split()[0] for line in again} == {"leaf", "leaf#2"}
    before = toolkit("logs", "leaf", "--previous", folder=project.folder).stdout.splitlines()
    assert {line.split()[0] for line in before} == {"leaf"}
    assert toolkit("logs", "--since", "1us", folder=project.folder).stdout == ""


def test_a_second_up_of_one_graph_is_refused(project: Project) -> None:
    path = project.write(PAIR)
    with up(path) as running:
        running.wait_ready()
        second = toolkit("up", str(path), folder=project.folder)
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert second.returncode == 6
    assert second.stderr.startswith(f"error: {path} is up already, by process {running.process.pid}; ")
    assert len(second.stderr.splitlines()) == 1


def test_a_launcher_that_was_killed_leaves_nothing_that_is_in_the_way(project: Project) -> None:
    path = project.write(PAIR)
    with up(path) as running:
        running.wait_ready()
        running.process.kill()
        running.process.wait()
        ps = toolkit("ps", "--graph", str(path), folder=project.folder)
        assert (ps.returncode, ps.stderr) == (7, f"error: {path} is not up; toolkit up {path} -d brings it up\n")
    with up(path) as again:
        again.wait_ready()
        again.signal(signal.SIGTERM)
        assert again.wait_exit() == 0


def test_a_start_on_its_own_that_fails_says_why(project: Project) -> None:
    path = project.write('entry: {class: "classes:Broken", port: PORT}')
    done = toolkit("up", str(path), "-d", "--wait", folder=project.folder)
    assert done.returncode == 1
    (error,) = (line for line in done.stderr.splitlines() if not line.startswith("entry | "))
    assert error.startswith("error: entry: ")
    assert "no weights here" in error


def test_a_restart_that_cannot_start_leaves_the_old_one_serving(project: Project) -> None:
    with detached(project, PAIR):
        (project.folder / "classes.py").write_text("nonsense(\n")
        done = toolkit("restart", "leaf", folder=project.folder)
        assert done.returncode == 1
        error = done.stderr.splitlines()[-1]
        assert error.startswith("error: leaf: the new replica could not start, and the old one goes on serving")
        assert names(project) == ["leaf", "entry"]
        assert "SyntaxError" in toolkit("logs", "leaf", folder=project.folder).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("restart", "lief"), "no deployment is named 'lief'; did you mean 'leaf'?"),
        (("scale", "leaf=1000"), "leaf=1000: name a number from 1 to 256"),
        (("scale", "entry=2"), "entry=2: port PORT takes one process; put a deployment of one replica before it"),
    ],
)
def test_what_cannot_be_asked_for_is_said(arguments: tuple[str, ...], said: str, shared: Project) -> None:
    done = toolkit(*arguments, folder=shared.folder)
    assert (done.returncode, done.stderr) == (2, f"error: {said.replace('PORT', str(shared.port))}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("Sya",), 2, "no method is called 'Sya'; there are: services.echo.v1.Echo/"),
        (("Say", "{"), 2, "the payload is not JSON: "),
        (("Say", "[]"), 2, "Say takes one JSON object, a Note"),
        (("Say", '{"txet": "hi"}'), 2, "the JSON is not a Note: "),
        (("Say", '{"number": "many"}'), 2, "the JSON is not a Note: "),
        (("Reflect", '{"pixels": "@none.npy"}'), 2, "pixels: none.npy: no such file"),
        (("Say", "--ca", "none.crt"), 2, "none.crt: no such file"),
        (("Reflect", "{}"), 1, "UNIMPLEMENTED: "),
    ],
)
def test_a_wrong_request_is_told_from_a_failed_call(
    arguments: tuple[str, ...], code: int, said: str, shared: Project
) -> None:
    done = toolkit("call", "--graph", "graph.yaml", *arguments, folder=shared.folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"error: {said}"), done.stderr


def test_logs_of_nobody_are_refused(shared: Project) -> None:
    done = toolkit("logs", "lief", folder=shared.folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nobody named 'lief' has said anything" in done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("shared"))
    with detached(project, PAIR):
        yield project


def test_some_services_come_up_with_what_they_call_or_alone(project: Project) -> None:
    services = PAIR + '\nother: {class: "classes:Leaf"}'
    with detached(project, services, "entry"):
        assert names(project) == ["leaf", "entry"]
    with detached(project, services, "entry", "--no-deps"):
        assert names(project) == ["entry"]


def test_events_are_lines_of_json(project: Project) -> None:
    path = project.write('entry: {class: "classes:Broken", port: PORT}')
    done = toolkit("up", str(path), "--json", folder=project.folder)
    assert (done.returncode, done.stderr) == (1, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"entry", ""} == {event["replica"] for event in events}
    assert any(event["text"].startswith("error: entry: ") for event in events)


def test_a_state_folder_that_cannot_be_made_is_one_line(project: Project) -> None:
    path = project.write(PAIR)
    env = environ(XDG_STATE_HOME=str(path))
    with up(path, env=env) as running:
        assert running.wait_exit() == 5
    (said,) = running.said
    assert said.startswith(f"error: cannot write in {path}/")
    assert said.endswith("; let XDG_STATE_HOME name a folder where you may")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_is_full_stops_the_record_and_not_the_graph(project: Project) -> None:
    path = project.write(PAIR)
    folder = state_folder(path, environ())
    folder.mkdir(parents=True)
    (folder / "log.jsonl").symlink_to("/dev/full")
    with up(path) as running:
        running.wait_ready()
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert running.errors == [
        "error: what the graph says is not recorded any more: No space left on device; make room, and start it again"
    ]


def test_what_is_edited_is_replaced_and_a_mistake_leaves_the_old_one_serving(project: Project) -> None:
    path = project.write('leaf: {class: "leaf:Edited"}\nentry: {class: "classes:Caller", port: PORT}')
    source = project.folder / "leaf.py"

    def write(text: str) -> None:
        head = "from services.echo.v1.echo_toolkit import EchoBase, Note\n\nclass Edited(EchoBase):\n"
        code = f"{head}    async def say(self, request, context):\n        return Note(text={text})\n"
        source.write_text(code)

    def said() -> str:
        done = toolkit("call", "Say", "{}", "--graph", "graph.yaml", folder=project.folder)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["text"])

    write("'one'")
    with up(path, "--watch") as running:
        running.wait_ready()
        assert said() == "one"
        write("'two'")
        running.wait_line("leaf.py changed: replacing leaf")
        running.wait_line("leaf   | stopped")
        assert said() == "two"
        write("'three")
        running.wait_line("SyntaxError: unterminated string literal")
        running.wait_line("error: leaf#2 goes on serving")
        assert said() == "two"
        write("'four'")
        running.wait_line("leaf#2 | stopped")
        assert said() == "four"
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert not any(line.startswith("entry#") for line in running.said)


def test_a_mistake_in_a_module_that_is_new_is_mended_there(project: Project) -> None:
    path = project.write('leaf: {class: "leaf:Edited"}\nentry: {class: "classes:Caller", port: PORT}')
    head = "from services.echo.v1.echo_toolkit import EchoBase\n"
    tail = "class Edited(EchoBase):\n    pass\n"
    (project.folder / "leaf.py").write_text(head + tail)
    with up(path, "--watch") as running:
        running.wait_ready()
        (project.folder / "helper.py").write_text("1 / 0\n")
        (project.folder / "leaf.py").write_text(f"{head}import helper\n{tail}")
        running.wait_line("error: leaf goes on serving")
        (project.folder / "helper.py").write_text("def fine(:\n")
        running.wait_line("helper.py changed: replacing leaf")
        running.wait_line("SyntaxError")
        running.wait_line("error: leaf goes on serving")
        (project.folder / "helper.py").write_text("")
        running.wait_line("leaf   | stopped")
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


SAYS = """
import os
from services.echo.v1.echo_toolkit import EchoBase, Note

class Says(EchoBase):
    async def say(self, request, context):
        return Note(text=os.environ["WORD"])
"""


def test_an_edited_graph_file_counts_at_once_and_a_mistake_changes_nothing(project: Project) -> None:
    (project.folder / "says.py").write_text(SAYS)
    entry = 'entry: {class: "says:Says", port: PORT, env: {WORD: WHAT}}'

    def said() -> str:
        done = toolkit("call", "Say", "{}", "--target", f"127.0.0.1:{project.port}", folder=project.folder)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["text"])

    with up(project.write(entry.replace("WHAT", "one")), "--watch") as running:
        running.wait_ready()
        assert said() == "one"
        project.write(entry.replace("WHAT", "two"))
        running.wait_line("graph.yaml changed: replacing entry")
        running.wait_line("entry   | stopped")
        assert said() == "two"
        project.write(entry.replace("WHAT", "three").replace("env", "evn"))
        running.wait_line("graph.yaml:4: services.entry.evn: unknown key; did you mean 'env'?")
        running.wait_line("error: test goes on as it was")
        assert said() == "two"
        project.write(entry.replace("WHAT", "three") + '\nother: {class: "says:Says"}')
        running.wait_line("graph.yaml changed: services counts from the next toolkit up on, and the rest with it")
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
