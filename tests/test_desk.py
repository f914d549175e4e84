"""Where a running graph takes requests: who has asked is answered, and nobody else."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from toolkit.launcher.desk import Desk
from toolkit.launcher.events import Asked, Event
from toolkit.launcher.processes import Processes


def connected(desk: Desk) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(desk.path)
    return client


def asked(processes: Processes) -> Asked:
    while True:
        event = processes.get(10)
        if isinstance(event, Asked):
            return event


def test_what_one_who_has_gone_had_asked_is_answered_to_nobody_else(tmp_path: Path) -> None:
    """A restart takes long; who has asked for it may leave, and somebody else come, whose connection has the same number."""
    with Processes(tmp_path) as processes:
        desk = Desk(tmp_path / "desk.sock", processes)
        with connected(desk) as gone:
            gone.sendall(b'{"do": "restart", "services": []}\n')
            before = asked(processes)
        assert processes.get(10) is None  # its end is seen
        with connected(desk) as here:
            here.sendall(b'{"do": "wait"}\n')
            after = asked(processes)
            desk.answer(before.client, {"code": 1, "error": "leaf did not come back"})
            desk.answer(after.client, {"code": 0})
            assert json.loads(here.makefile("rb").readline()) == {"code": 0}
        desk.close(0)


def test_what_was_there_for_one_who_is_forgotten_is_not_read_by_whoever_has_its_number_now(tmp_path: Path) -> None:
    """Two have something to say; the first that is heard puts somebody else in the place of the other."""
    heard: list[str] = []
    with Processes(tmp_path) as processes, socket.socket() as newcomer:
        pairs = {name: socket.socketpair() for name in "ab"}

        def reader(name: str) -> Callable[[], Iterable[Event]]:
            def read() -> Iterable[Event]:
                heard.append(name)
                for each, (ours, _) in pairs.items():
                    processes.forget(ours)
                    if each != name:
                        os.dup2(newcomer.fileno(), ours.fileno())
                        processes.listen(ours.fileno(), list)
                return []

            return read

        for name, (ours, _) in pairs.items():
            processes.listen(ours, reader(name))
        for _, theirs in pairs.values():
            theirs.send(b".")
        assert processes.get(1) is None
        for each in (end for pair in pairs.values() for end in pair):
            each.close()
    assert len(heard) == 1
