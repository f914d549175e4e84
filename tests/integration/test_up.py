"""`toolkit up` as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.up import Project, Running, children, environ, toolkit, up, wait_gone, watch
from toolkit.launcher.guardian import MARK

pytestmark = pytest.mark.integration

LEAF = 'entry: {class: "classes:Leaf", port: PORT}'
PAIR = 'leaf: {class: "classes:Leaf"}\nentry: {class: "classes:Caller", port: PORT}'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def begin_call(project: Project, text: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "toolkit",
            "call",
            "Say",
            json.dumps({"text": text}),
            "--target",
            f"127.0.0.1:{project.port}",
        ],
        cwd=project.folder,
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_graph_comes_up_answers_and_goes_down(project: Project) -> None:
    path = project.write(PAIR)
    with up(path) as running:
        ready = running.wait_ready()
        assert re.search(rf"ready: test on 127\.0\.0\.1:{project.port} \(2 replicas, \d+\.\d s\)", ready)
        assert f"toolkit call METHOD '{{}}' --graph {path}" in running.wait_line("call it: ")
        with watch(running.replicas()) as replicas:
            assert len(replicas) == 2
            called = toolkit("call", "Say", '{"text": "hi"}', "--graph", "graph.yaml", folder=project.folder)
            assert (called.returncode, called.stderr) == (0, "")
            assert json.loads(called.stdout)["text"] == "hi"
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0
            assert wait_gone(replicas, 0)
    assert running.errors == []
    assert [line for line in running.said if "draining" in line][1:] == ["entry | draining", "leaf  | draining"]


def test_every_variable_that_is_set_is_printed_before_anything_starts(project: Project) -> None:
    with up(project.write(LEAF)) as running:
        plan = running.wait_line("entry | ")
        running.wait_ready()
        (pid,) = running.replicas()
        theirs = dict(each.partition("=")[::2] for each in Path(f"/proc/{pid}/environ").read_text().split("\0") if each)
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    ours = environ()
    added = {
        name: value
        for name, value in theirs.items()
        if ours.get(name) != value and not name.startswith(("TOOLKIT_", MARK))
    }
    assert added
    assert all(f"{name}={value}" in plan for name, value in added.items())


def socket_folder(running: Running) -> Path:
    return Path(running.wait_line("unix:").split("unix:")[1].split(",")[0]).parent


def test_the_folder_of_the_sockets_is_private_and_goes_away(project: Project) -> None:
    with up(project.write(LEAF)) as running:
        folder = socket_folder(running)
        assert folder.stat().st_mode & 0o777 == 0o700
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert not folder.exists()


def test_ctrl_c_lets_a_call_in_flight_finish(project: Project) -> None:
    with up(project.write(PAIR)) as running:
        running.wait_ready()
        call = begin_call(project, "wait 1.5")
        running.wait_line("call has begun")
        running.signal(signal.SIGINT)
        assert running.wait_exit() == 0
        out, err = call.communicate()
    assert (call.returncode, err) == (0, "")
    assert json.loads(out)["text"] == "wait 1.5"


def test_a_call_that_does_not_end_is_killed_after_the_limit(project: Project) -> None:
    with up(project.write(LEAF), "--drain-timeout", "100ms") as running:
        running.wait_ready()
        call = begin_call(project, "block 600")
        running.wait_line("call has begun")
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 8
        call.communicate()
    assert running.errors == ["error: entry: still busy after 0.1 s of draining; killed"]


def test_a_call_that_a_replica_cuts_off_itself_is_told_too(project: Project) -> None:
    with up(project.write(LEAF), "--drain-timeout", "100ms") as running:
        running.wait_ready()
        calling = begin_call(project, "wait 60")
        running.wait_line("call has begun")
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 8
        assert calling.wait(30) == 1
        calling.communicate()
    assert running.errors == ["error: entry: calls were still in flight at the end of its drain, and were cut off"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_kills_at_once(project: Project, number: int, code: int) -> None:
    with up(project.write(LEAF)) as running:
        running.wait_ready()
        call = begin_call(project, "block 600")
        running.wait_line("call has begun")
        with watch(running.replicas()) as replicas:
            running.signal(number)
            running.wait_line("draining, callers first; once more kills")
            running.signal(number)
            assert running.wait_exit() == code
            assert wait_gone(replicas, 0)
        call.communicate()


def test_when_launcher_and_guardian_are_killed_the_replicas_go_and_the_next_one_sweeps(project: Project) -> None:
    path = project.write(PAIR)
    with up(path) as running:
        folder = socket_folder(running)
        replicas = running.replicas()
        (guardian,) = set(children(running.process.pid)) - set(replicas)
        with watch(replicas) as ends:
            os.kill(guardian, signal.SIGKILL)
            running.process.kill()
            assert wait_gone(ends, 5)
    assert folder.exists()
    with up(path) as again:
        again.wait_ready()
        assert not folder.exists()
        again.signal(signal.SIGTERM)
        assert again.wait_exit() == 0


def test_what_a_replica_started_goes_with_it(project: Project) -> None:
    with up(project.write('entry: {class: "classes:Parent", port: PORT}')) as running:
        pid = int(running.wait_line("child ").split()[-1])
        with watch([pid]) as child:
            running.wait_ready()
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0
            assert wait_gone(child, 5)


def test_a_class_that_cannot_be_made_is_told_once_and_all_goes_down(project: Project) -> None:
    with up(project.write('leaf: {class: "classes:Leaf"}\nentry: {class: "classes:Broken", port: PORT}')) as running:
        assert running.wait_exit() == 1
    assert len(running.errors) == 1
    assert running.errors[0].startswith("error: entry: ")
    assert "no weights here" in running.errors[0]
    assert "leaf  | stopped" in running.said


def test_a_class_that_is_not_there_is_told(project: Project) -> None:
    with up(project.write('entry: {class: "classes:Laef", port: PORT}')) as running:
        assert running.wait_exit() == 1
    assert len(running.errors) == 1
    assert "Laef" in running.errors[0]


def test_a_wrong_edge_stops_the_start(project: Project) -> None:
    with up(project.write('leaf: {class: "classes:Leaf"}\nentry: {class: "classes:Wrong", port: PORT}')) as running:
        assert running.wait_exit() == 2
    assert len(running.errors) == 1
    assert re.search(r"graph\.yaml:5: services\.entry: classes:Wrong has the handle 'leav'", running.errors[0])


def test_a_cycle_stops_the_start(project: Project) -> None:
    with up(project.write('leaf: {class: "classes:Ring"}\nentry: {class: "classes:Caller", port: PORT}')) as running:
        assert running.wait_exit() == 2
    assert len(running.errors) == 1
    assert "a cycle of handles: leaf → entry → leaf" in running.errors[0]


def test_not_ready_in_time_is_exit_code_4(project: Project) -> None:
    path = project.write('entry: {class: "classes:Slow", port: PORT}')
    with up(path, "--start-timeout", "3s") as running:
        running.wait_line("entry | read weights 3/10")
        with watch(running.replicas()) as replicas:
            assert running.wait_exit() == 4
            assert wait_gone(replicas, 0)
    assert running.errors == [
        "error: not ready after 3 s: entry (read weights 3/10); raise --start-timeout if it needs longer"
    ]


def test_ctrl_c_while_a_model_loads_is_quick_and_clean(project: Project) -> None:
    with up(project.write('entry: {class: "classes:Slow", port: PORT}')) as running:
        running.wait_line("read weights")
        running.signal(signal.SIGINT)
        assert running.wait_exit() == 0


def say(project: Project, text: str) -> subprocess.CompletedProcess[str]:
    return toolkit("call", "Say", json.dumps({"text": text}), "--graph", "graph.yaml", folder=project.folder)


def test_a_replica_that_dies_comes_back_and_its_callers_find_it(project: Project) -> None:
    with up(project.write('leaf: {class: "classes:Dies"}\nentry: {class: "classes:Caller", port: PORT}')) as running:
        running.wait_ready()
        assert say(project, "die").returncode in (0, 1)  # sent again, it is answered by who comes soon enough
        running.wait_line("leaf#2 | ready after")
        again = say(project, "hello")
        assert (again.returncode, again.stderr) == (0, "")
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    (error,) = running.errors
    assert re.fullmatch(
        r"error: leaf: exited with code 3 while it served; its last lines are above; starts again in 0\.\d s", error
    )


def test_an_entry_that_is_killed_gets_its_port_back(project: Project) -> None:
    with up(project.write(LEAF)) as running:
        running.wait_ready()
        os.kill(running.replicas()[0], signal.SIGKILL)
        running.wait_line("entry#2 | ready after")
        assert say(project, "hello").returncode == 0
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_a_replica_that_hangs_shows_where_and_is_replaced(project: Project) -> None:
    with up(project.write(LEAF), "--hang-timeout", "2s") as running:
        running.wait_ready()
        call = begin_call(project, "block 600")
        running.wait_line("its event loop has not turned for 2 s")
        running.wait_line("in say")
        running.wait_line("entry#2 | ready after")
        assert say(project, "hello").returncode == 0
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
        call.communicate()


def test_a_replica_that_does_not_hear_sigterm_is_killed(project: Project) -> None:
    with up(project.write('entry: {class: "classes:Deaf", port: PORT}'), "--drain-timeout", "100ms") as running:
        running.wait_ready()
        with watch(running.replicas()) as replicas:
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 8
            assert wait_gone(replicas, 0)
    assert running.errors == ["error: entry: still busy after 0.1 s of draining; killed"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_launcher(project: Project, end: signal.Signals) -> None:
    """No process within 2 s, those included that hide in a session of their own; and no socket."""
    with up(project.write('entry: {class: "classes:Spreads", port: PORT}')) as running:
        grandchild = int(running.wait_line("grandchild ").split()[-1])
        folder = socket_folder(running)
        with watch([*children(running.process.pid), grandchild]) as everybody:
            assert len(everybody) == 3
            running.signal(end)
            assert wait_gone(everybody, 2)
        assert not folder.exists()


def test_a_replica_whose_launcher_dies_while_its_loop_is_blocked_goes_too(project: Project) -> None:
    with up(project.write(LEAF)) as running:
        running.wait_ready()
        call = begin_call(project, "block 600")
        running.wait_line("call has begun")
        with watch(children(running.process.pid)) as everybody:
            running.process.kill()
            assert wait_gone(everybody, 2)
        call.communicate()


def test_a_port_that_is_taken_is_told_with_its_holder_before_anything_starts(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", project.port))
        taken.listen()
        path = project.write(LEAF)
        with up(path) as running:
            assert running.wait_exit() == 5
    (said,) = running.said
    assert said.startswith(
        f"error: {path}:4: services.entry.port: port {project.port} is taken by process {os.getpid()} ("
    )
    assert said.endswith("); stop that, or name another port")


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(project: Project) -> None:
    path = project.write('entry: {class: "classes:Leaf", port: PORT, device: cuda}')
    with up(path, env=environ(CUDA_VISIBLE_DEVICES="")) as running:
        assert running.wait_exit() == 3
    assert running.said == [
        f"error: {path}:4: services.entry.device: cuda asks for a GPU and this machine shows none; say auto or cpu"
    ]


def test_what_a_replica_prints_is_bounded_and_cleaned(project: Project) -> None:
    with up(project.write('entry: {class: "classes:Chatty", port: PORT}')) as running:
        running.wait_ready()
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert "entry | \\xffred" in running.said
    assert "entry | to stderr" in running.said
    assert "entry | 100%" in running.said
    assert len([line for line in running.said if re.fullmatch(r"entry \| \d\d?%", line)]) <= 1
    assert [len(line) for line in running.said if "xxx" in line] == [
        256 * 1024 + 8,
        256 * 1024 + 8,
        700_000 - 512 * 1024 + 8,
    ]


def test_nohup_keeps_a_graph_up(project: Project) -> None:
    path = project.write(LEAF)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with up(path) as running:
            running.wait_ready()
            running.signal(signal.SIGHUP)
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not any("SIGHUP" in line for line in running.said)


def test_a_terminal_shows_progress_and_its_end_is_a_clean_stop(project: Project) -> None:
    path = project.write('entry: {class: "classes:Slow", port: PORT}')
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", "up", str(path)],
        cwd=project.folder,
        env=environ(TERM="xterm", COLUMNS="200"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while b"read weights 3/10" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)  # the terminal's window is closed: from here on every write fails
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0


def test_replicas_share_nothing_of_an_outer_replicas_variables(project: Project) -> None:
    path = project.write(LEAF)
    with up(path, env=environ(TOOLKIT_LISTEN='["127.0.0.1:1"]', TOOLKIT_NONSENSE="1")) as running:
        running.wait_ready()
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


def test_two_graphs_run_side_by_side(tmp_path: Path) -> None:
    first, second = (Project(tmp_path / name) for name in ("a", "b"))
    for each in (first, second):
        each.folder.mkdir()
    with up(first.write(LEAF)) as one, up(second.write(LEAF)) as other:
        for running in (one, other):
            running.wait_ready()
        for running in (one, other):
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0


def test_several_replicas_come_up_under_their_own_names(project: Project) -> None:
    path = project.write('leaf: {class: "classes:Leaf", replicas: 2}\nentry: {class: "classes:Caller", port: PORT}')
    with up(path) as running:
        assert "(3 replicas" in running.wait_ready()
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert any(line.startswith("leaf.1 | ready after") for line in running.said)


def test_a_launcher_that_was_stopped_blames_no_replica(project: Project) -> None:
    """Longer than its patience with one that hangs: what was said, and the second for which one may be silent anyway."""
    with up(project.write(LEAF), "--hang-timeout", "1s") as running:
        running.wait_ready()
        before = running.replicas()
        running.signal(signal.SIGSTOP)
        assert say(project, "while it is stopped").returncode == 0
        assert say(project, "wait 2.5").returncode == 0
        running.signal(signal.SIGCONT)
        assert toolkit("ps", folder=project.folder).returncode == 0
        assert running.replicas() == before
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    assert running.errors == []


def test_going_up_and_down_leaves_nothing(project: Project) -> None:
    path = project.write(PAIR)
    for _ in range(3):
        with up(path) as running:
            folder = socket_folder(running)
            with watch([*children(running.process.pid), running.process.pid]) as everybody:
                assert len(everybody) == 4
                running.signal(signal.SIGTERM)
                assert running.wait_exit() == 0
                assert wait_gone(everybody, 1)
        assert not folder.exists()
