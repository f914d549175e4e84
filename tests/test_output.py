"""What replicas print, and what `up` makes of it."""

from __future__ import annotations

import io
import os
import pty
from dataclasses import dataclass, field

import pytest

from toolkit.launcher.lines import LineSplitter, parse_object
from toolkit.launcher.live import LiveView
from toolkit.launcher.output import PlainView, Row, is_terminal, wants_colour


def split(*chunks: bytes, limit: int = 1000) -> list[tuple[str, bool]]:
    splitter = LineSplitter(limit)
    return [line for chunk in chunks for line in splitter.feed(chunk)] + list(splitter.finish())


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"a\nb\n"], [("a", False), ("b", False)]),
        ([b"a", b"b\nc"], [("ab", False), ("c", False)]),
        ([b"a\r\nb\r", b"\nc"], [("a", False), ("b", False), ("c", False)]),
        ([b"\n\n"], [("", False), ("", False)]),
        ([b" 10%\r 20%\r 30%\n"], [(" 10%", True), (" 20%", True), (" 30%", False)]),
        ([b"10%\r", b"20%\r"], [("10%", True), ("20%", False)]),
        ([b"\r10%\r20%\r\r"], [("10%", True), ("20%", True)]),
        ([b"caf\xc3", b"\xa9 \xff\n"], [("café \\xff", False)]),
        ([b"\x1b[31mred\x1b[0m \x1b]0;title\x07x\x00\x08\ty\n"], [("red x\ty", False)]),
        ([b""], []),
    ],
)
def test_bytes_become_lines(chunks: list[bytes], lines: list[tuple[str, bool]]) -> None:
    assert split(*chunks) == lines


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"\xff", b'{"a": "\xff"}', b"[1]", b"1", b"[" * 100_000, "{'a': 1}"],
    ids=lambda line: repr(line[:9]),
)
def test_a_line_that_is_no_object_is_none(line: str | bytes) -> None:
    assert parse_object(line) is None
    assert parse_object('{"a": [1, "ä"]}') == parse_object('{"a": [1, "ä"]}'.encode()) == {"a": [1, "ä"]}


def test_a_line_without_end_comes_in_pieces() -> None:
    assert split(b"x" * 2500, limit=1000) == [("x" * 1000, False), ("x" * 1000, False), ("x" * 500, False)]
    assert split(b"x" * 2500 + b"\n", limit=1000) == [("x" * 1000, False), ("x" * 1000, False), ("x" * 500, False)]


def test_chunks_do_not_change_the_lines() -> None:
    text = b"one\r\ntwo\r 3 %\r 4 %\nfour\n\nfive"
    assert split(*(text[at : at + 1] for at in range(len(text)))) == split(text)


@dataclass
class Screen:
    """A view on a text buffer, with a clock that stands still until told."""

    now: float = 0.0
    stream: io.StringIO = field(default_factory=io.StringIO)

    def view(self, *names: str, is_coloured: bool = False) -> PlainView:
        return PlainView(self.stream, names, is_coloured=is_coloured, clock=lambda: self.now)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


def test_prefixes_are_aligned() -> None:
    screen = Screen()
    view = screen.view("gpt2", "classifier")
    view.line("gpt2", "hello")
    view.line("classifier", "there")
    view.line("gpt2", "")
    assert screen.lines == ["gpt2       | hello", "classifier | there", "gpt2       |"]


def test_colours_come_only_where_they_are_wanted() -> None:
    screen = Screen()
    screen.view("a", is_coloured=True).line("a", "x")
    assert screen.lines == ["\x1b[36ma |\x1b[0m x"]


def test_a_phase_is_told_once_and_then_seldom() -> None:
    screen = Screen()
    view = screen.view("a")
    for done in range(10):
        screen.now = done * 1.0
        view.show("a", Row(state="loading", phase="read weights", done=done, total=10))
    view.show("a", Row(state="ready", phase="ready after 9.0 s"))
    assert screen.lines == ["a | read weights 0/10", "a | read weights 5/10", "a | ready after 9.0 s"]


def test_progress_bars_are_thinned_out() -> None:
    screen = Screen()
    view = screen.view("a")
    for percent in range(100):
        screen.now = percent / 10
        view.line("a", f"{percent}%", is_transient=True)
    assert screen.lines == ["a | 0%", "a | 50%"]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (Row(state="loading"), "loading"),
        (Row(state="loading", phase="p"), "p"),
        (Row(state="loading", phase="p", done=3, total=10), "p 3/10"),
        (Row(state="loading", phase="p", done=7), "p 7"),
        (Row(state="loading", phase="p", done=5e8, total=1e9), "p 50%"),
    ],
)
def test_how_far_it_is(row: Row, text: str) -> None:
    assert row.text == text


def test_every_line_of_a_complaint_is_marked() -> None:
    screen = Screen()
    screen.view().complain("a\nb")
    assert screen.lines == ["error: a", "error: b"]


def test_a_broken_stream_goes_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        view = PlainView(stream, ["a"], is_coloured=False, clock=lambda: 0.0)
        view.line("a", "x" * 100_000)
        view.say("y")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_colour_is_for_terminals_without_no_color() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb"):
        assert is_terminal(terminal, {})
        assert wants_colour(terminal, {"NO_COLOR": ""})
        assert not wants_colour(terminal, {"NO_COLOR": "1"})
        assert not wants_colour(terminal, {"TERM": "dumb"})
    assert not wants_colour(io.StringIO(), {})


def test_a_terminal_shows_rows_while_loading_and_lines_afterwards() -> None:
    stream = io.StringIO()
    now = iter(range(1000))
    view = LiveView(stream, ["gpt2", "graph"], is_coloured=False, clock=lambda: float(next(now)))
    view.show("gpt2", Row(state="loading", phase="read weights", done=3, total=10))
    view.show("graph", Row(state="waiting", phase="waiting for gpt2"))
    view.line("gpt2", "12 %", is_transient=True)
    view.line("gpt2", "a line [with brackets] :smile:")
    drawn = stream.getvalue()
    for text in ("read weights 3/10", "waiting for gpt2", "12 %", "gpt2  | a line [with brackets] :smile:"):
        assert text in drawn
    assert view.interval is not None
    view.settle()
    stream.truncate(0)
    stream.seek(0)
    view.line("gpt2", "served")
    view.settle()
    assert stream.getvalue() == "gpt2  | served\n"
    assert view.interval is None
