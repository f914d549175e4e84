"""What a graph leaves on disk: who runs it, and what it said."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import ConflictError, NotRunningError, RunningError
from toolkit.launcher.guardian import MARK, end_all, find_marked
from toolkit.launcher.output import Row
from toolkit.launcher.ports import find_holder, held_ports
from toolkit.launcher.record import LimitedFile, Record, incarnation, is_of, read_record
from toolkit.launcher.state import Run, announce, claimed, find_run, read_run, state_folder

# Who runs it


def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def test_a_graph_is_found_while_it_is_claimed(tmp_path: Path) -> None:
    file, env = tmp_path / "graph.yaml", environ(tmp_path)
    run = Run(pid=1, name="g", path=str(file), socket="/x")
    with claimed(file, env) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert read_run(folder) is None, "it takes no requests yet"
        announce(folder, run)
        assert find_run(file, env) == (folder, run)
    with pytest.raises(NotRunningError, match="is not up"):
        find_run(file, env)


def test_two_claims_of_one_graph_are_one_too_many(tmp_path: Path) -> None:
    file, env = tmp_path / "graph.yaml", environ(tmp_path)
    with claimed(file, env), pytest.raises(RunningError, match="is up already, by another process"), claimed(file, env):
        pass
    with claimed(file, env), claimed(tmp_path / "other.yaml", env):
        pass


def test_what_a_dead_launcher_left_counts_for_nothing(tmp_path: Path) -> None:
    file, env = tmp_path / "graph.yaml", environ(tmp_path)
    with claimed(file, env) as folder:
        pass
    announce(folder, Run(pid=1, name="g", path=str(file), socket="/x"))
    assert read_run(folder) is None
    with claimed(file, env):
        assert read_run(folder) is None


def test_several_graphs_are_told_apart_by_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = environ(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotRunningError, match="no graph is up"):
        find_run(None, env)
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    with claimed(one, env) as folder:
        announce(folder, Run(pid=1, name="one", path=str(one), socket="/1"))
        assert find_run(None, env)[1].name == "one"
        with claimed(two, env) as other:
            announce(other, Run(pid=2, name="two", path=str(two), socket="/2"))
            with pytest.raises(NotRunningError, match=f"several graphs are up; name one: --graph {one}, --graph {two}"):
                find_run(None, env)


def test_a_folder_that_cannot_be_made_is_a_conflict(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with (
        pytest.raises(ConflictError, match="cannot write in .*; let XDG_STATE_HOME name"),
        claimed(tmp_path / "graph.yaml", environ(tmp_path)),
    ):
        pass


def test_the_home_folder_serves_where_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder(tmp_path / "g.yaml", {}).parent == tmp_path / ".local" / "state" / "grpc-model-toolkit"


# What it said


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    file = LimitedFile(tmp_path)
    record = Record(file, lambda: 5.0)
    record.line("a", "ä\x00", is_transient=False)
    record.line("a", "50%", is_transient=True)
    record.show("a", Row(state="ready", phase="ready after 1 s"))
    record.say("hello")
    record.complain("oh")
    file.close()
    assert list(read_record(tmp_path)) == [
        {"t": 5.0, "replica": "a", "text": "ä\x00"},
        {"t": 5.0, "replica": "a", "state": "ready", "text": "ready after 1 s"},
        {"t": 5.0, "replica": "", "text": "hello"},
        {"t": 5.0, "replica": "", "text": "error: oh"},
    ]


def test_a_record_keeps_its_limit_and_its_newest_lines(tmp_path: Path) -> None:
    file = LimitedFile(tmp_path, limit=1000)
    record = Record(file, lambda: 0.0)
    for number in range(200):
        record.line("a", str(number))
    file.close()
    found = [int(said["text"]) for said in read_record(tmp_path)]
    assert found == list(range(found[0], 200))
    assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 2000


def test_a_record_that_something_else_wrote_into_is_read_on(tmp_path: Path) -> None:
    file = LimitedFile(tmp_path)
    record = Record(file, lambda: 5.0)
    record.say("before")
    with (tmp_path / "log.jsonl").open("ab") as other:
        other.write(b"\xff\xfe\n[]\n")
    file.close()
    with (tmp_path / "log.jsonl").open("a") as again:
        Record(again, lambda: 6.0).say("after")
    assert [said["text"] for said in read_record(tmp_path)] == ["before", "after"]


def test_a_record_is_followed_over_its_limit_until_nobody_writes(tmp_path: Path) -> None:
    file = LimitedFile(tmp_path, limit=100)
    record = Record(file, lambda: 0.0)
    record.line("a", "0")
    steps = iter(range(1, 9))

    def write_on(seconds: float) -> None:
        record.line("a", str(next(steps)))

    growing = iter([True] * 8 + [False] * 9)
    found = read_record(tmp_path, is_growing=lambda: next(growing), pause=write_on)
    assert [said["text"] for said in found] == [str(number) for number in range(9)]
    file.close()


def test_names_of_replicas() -> None:
    assert incarnation("gpt2.1#3") == ("gpt2.1", 3)
    assert incarnation("gpt2") == ("gpt2", 1)
    for names, expected in (([], True), (["gpt2"], True), (["gpt2.1"], True), (["gpt2.1#3"], True), (["gpt"], False)):
        assert is_of("gpt2.1#3", names) is expected


def test_the_lines_of_a_shared_process_are_found_by_each_of_its_deployments() -> None:
    file = io.StringIO()
    record = Record(file, lambda: 5.0, shared={"pair": ("a", "b")})
    record.line("pair.1#2", "hello")
    record.line("c", "hello")
    shared, alone = map(json.loads, file.getvalue().splitlines())
    assert shared == {"t": 5.0, "replica": "pair.1#2", "deployments": ["a", "b"], "text": "hello"}
    assert "deployments" not in alone
    found = {name: is_of("pair.1#2", [name], shared["deployments"]) for name in ("a", "b", "pair", "pair.1", "c")}
    assert found == {"a": True, "b": True, "pair": True, "pair.1": True, "c": False}


# Ports


def test_a_held_port_is_shared_with_those_who_say_so_and_with_nobody_else() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with held_ports([("here", "127.0.0.1", port)]):
        with socket.socket() as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            ours.bind(("127.0.0.1", port))
            ours.listen()
            assert find_holder(port) is not None
            with (
                pytest.raises(ConflictError, match=f"here: port {port} is taken by process {os.getpid()} "),
                held_ports([("here", "127.0.0.1", port)]),
            ):
                pass
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", port))


@pytest.mark.parametrize("lingers", ["nothing", "ours", "theirs"])
def test_a_port_is_held_once_even_while_nobody_listens(lingers: str) -> None:
    """Nor where connections of whoever had it last still linger, be it one that shared it or not."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if lingers != "nothing":
        leave_a_connection(port, shared=lingers == "ours")
    with held_ports([("here", "127.0.0.1", port)]):
        with (
            pytest.raises(
                ConflictError, match=f"there: port {port} is taken by .*a graph whose entry does not listen yet"
            ),
            held_ports([("there", "127.0.0.1", port)]),
        ):
            pass
        with listening(port, shared=True), listening(port, shared=True):
            pass


def listening(port: int, *, shared: bool) -> socket.socket:
    """As gRPC does."""
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    server.bind(("127.0.0.1", port))
    server.listen()
    return server


def leave_a_connection(port: int, *, shared: bool) -> None:
    """Its server's side closes first, so that the kernel remembers it there for a minute."""
    with listening(port, shared=shared) as server, socket.create_connection(("127.0.0.1", port)) as client:
        server.accept()[0].close()
        assert client.recv(1) == b""


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(ConflictError, match="it is no address of this machine"), held_ports([("here", "192.0.2.1", 5)]):
        pass


# The guardian


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows environments")
def test_a_mark_ends_its_own_processes_and_no_other() -> None:
    waits = ["sh", "-c", "echo; read until_killed"]  # with nothing to start: a process shows no environment in its exec
    marked = subprocess.Popen(
        waits,
        env={**os.environ, MARK: "a" * 32},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: "b" * 32})
    try:
        assert marked.stdout is not None
        assert marked.stdout.readline() == b"\n"
        assert list(find_marked("a" * 32)) == [marked.pid]
        end_all("a" * 32)
        assert marked.wait() == -9
        assert other.poll() is None
    finally:
        for each in (marked, other):
            each.kill()
            each.communicate()
