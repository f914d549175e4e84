"""Files that change become events."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from toolkit.launcher.events import Changed, Event, Noted
from toolkit.launcher.processes import Processes
from toolkit.launcher.watch import watched

ROOT = Path(__file__).parents[1]
ENVIRON = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}"}


class Listener:
    """What `Processes` does with one source, on its own."""

    def listen(self, source: socket.socket, read: Callable[[], Iterable[Event]]) -> None:
        self._read = read

    def forget(self, source: Any) -> None:
        pass

    def wait(self, wanted: Callable[[Event], bool]) -> Event:
        while True:
            for event in self._read():
                if wanted(event):
                    return event


@contextmanager
def watching(folder: Path) -> Any:
    listener = Listener()
    with watched(folder, cast("Processes", listener), ENVIRON):
        yield listener


def test_what_a_service_may_be_made_of_is_told(tmp_path: Path) -> None:
    with watching(tmp_path) as listener:
        (tmp_path / "notes.txt").write_text("")
        (tmp_path / "service.py").write_text("")
        event = listener.wait(lambda event: "service.py" in str(event))
    assert event == Changed((str((tmp_path / "service.py").resolve()),))


def test_nothing_is_missed_from_the_first_moment_on(tmp_path: Path) -> None:
    """However late the thread that looks gets its turn."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(5):
            folder = tmp_path / str(number)
            folder.mkdir()
            with watching(folder) as listener:
                (folder / "service.py").write_text("")
                listener.wait(lambda event: isinstance(event, Changed))
    finally:
        sys.setswitchinterval(before)


def test_a_proto_that_is_wrong_is_told_with_its_place(tmp_path: Path) -> None:
    protos = tmp_path / "protos" / "a" / "v1"
    protos.mkdir(parents=True)
    with watching(tmp_path) as listener:
        (protos / "a.proto").write_text('syntax = "proto3";\npackage a.v1;\nmessage A { nonsense }\n')
        event = listener.wait(lambda event: isinstance(event, Noted))
    assert "a/v1/a.proto:3:" in event.complaint


def test_a_proto_that_changed_is_generated_from(tmp_path: Path) -> None:
    protos = tmp_path / "protos" / "a" / "v1"
    protos.mkdir(parents=True)
    with watching(tmp_path) as listener:
        (protos / "a.proto").write_text('syntax = "proto3";\npackage a.v1;\nmessage A { string text = 1; }\n')
        event = listener.wait(lambda event: "a_toolkit.py" in str(event) or isinstance(event, Noted))
    assert isinstance(event, Changed), event


def test_a_folder_that_cannot_be_watched_is_said(tmp_path: Path) -> None:
    with watching(tmp_path / "gone") as listener:
        event = listener.wait(lambda event: isinstance(event, Noted))
    assert isinstance(event, Noted)
    assert event.complaint.startswith(f"{tmp_path}/gone is not watched: No path was found; ")
