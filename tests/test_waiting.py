"""Verbs that keep somebody waiting say how far they are, and quick ones nothing."""

from __future__ import annotations

import io
import threading

import pytest

from toolkit.launcher import waiting
from toolkit.launcher.waiting import busy


class Stream(io.StringIO):
    """Knows when something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = threading.Event()

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count

    def wait_line(self) -> None:
        assert self.written.wait(60)
        self.written.clear()


def test_what_is_done_quickly_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SILENCE", 3600.0)
    stream = Stream()
    with busy("graph.yaml", stream, {}) as report:
        report("import a:A", 0, 2)
    assert stream.getvalue() == ""


def test_what_takes_long_is_shown_phase_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SILENCE", 0.0)
    stream = Stream()
    with busy("graph.yaml", stream, {}) as report:
        report("import a:A", 0, 2)
        while "a:A 0/2" not in stream.getvalue():
            stream.wait_line()
        report("import b:B", 1, 2)
        while "b:B" not in stream.getvalue():
            stream.wait_line()
    *_, first, second = stream.getvalue().splitlines()
    assert (first, second) == ("graph.yaml | import a:A 0/2", "graph.yaml | import b:B 1/2")
