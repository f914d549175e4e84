"""What `up` shows: the lines of many replicas, each with its prefix, and how far they are. Standard error only."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TextIO

REPEAT_INTERVAL = 5.0
"""Seconds between two lines about the same phase, where there is no terminal to redraw."""
_COLOURS = (36, 35, 33, 34, 32, 96, 95, 93, 94, 92)
_RED, _DIM = 31, 2
_QUIET = ("pending", "starting")
"""States that say nothing beyond the plan, which is printed before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """How far a replica is."""

    state: str
    phase: str = ""
    done: float = 0
    total: float | None = None

    @property
    def text(self) -> str:
        """`read weights 3/10`, or the state where there is no phase."""
        if not self.phase:
            return self.state
        return f"{self.phase} {self._count()}".rstrip()

    def _count(self) -> str:
        if not self.total:
            return f"{self.done:g}" if self.done else ""
        if self.total > 10_000:
            return f"{self.done / self.total:.0%}"
        return f"{self.done:g}/{self.total:g}"


class View(Protocol):
    """What the supervisor needs to be seen."""

    @property
    def interval(self) -> float | None:
        """Seconds between two calls of `tick` that it would like."""

    def line(self, name: str, text: str, *, is_transient: bool = False) -> None:
        """What a replica printed."""

    def show(self, name: str, row: Row) -> None:
        """How far a replica is now."""

    def say(self, text: str) -> None:
        """A sentence of the launcher itself."""

    def complain(self, text: str) -> None:
        """What went wrong, one line each."""

    def tick(self) -> None:
        """Time has passed."""

    def settle(self) -> None:
        """Nothing moves any more: from now on only lines."""


class PlainView:
    """Lines, for a file, a pipe, or a terminal that is past loading. A stream that breaks goes silent: nothing here raises."""

    interval: float | None = None

    def __init__(self, stream: TextIO, names: Sequence[str], *, is_coloured: bool, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._is_coloured = is_coloured
        self._clock = clock
        self._width = max(map(len, names), default=0)
        self._colour = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
        self._shown: dict[str, tuple[Row, float]] = {}
        self._transient: dict[str, float] = {}

    def line(self, name: str, text: str, *, is_transient: bool = False) -> None:
        if is_transient:
            if self._clock() - self._transient.get(name, -REPEAT_INTERVAL) < REPEAT_INTERVAL:
                return
            self._transient[name] = self._clock()
        self._write(self._prefixed(name, text))

    def show(self, name: str, row: Row) -> None:
        if row.state in _QUIET:
            return
        before, at = self._shown.get(name, (None, -REPEAT_INTERVAL))
        if before is not None and before.text == row.text:
            return
        is_new = before is None or (before.state, before.phase) != (row.state, row.phase)
        if is_new or self._clock() - at >= REPEAT_INTERVAL:
            self._shown[name] = row, self._clock()
            self._write(self._prefixed(name, row.text))

    def say(self, text: str) -> None:
        self._write(text)

    def complain(self, text: str) -> None:
        for line in text.splitlines() or [""]:
            self._write(self._paint("error: ", _RED) + line)

    def tick(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def _prefixed(self, name: str, text: str) -> str:
        self._width = max(self._width, len(name))
        return self._paint(f"{name:<{self._width}} |", self._colour.get(name.partition("#")[0], _DIM)) + (
            f" {text}" if text else ""
        )

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._is_coloured else text

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (
            OSError,
            ValueError,
        ):  # the terminal is gone, or the pipe's reader: what runs must still be stopped well
            pass


class QuietView(PlainView):
    """Shows what went wrong, and nothing else."""

    def line(self, name: str, text: str, *, is_transient: bool = False) -> None:
        pass

    def show(self, name: str, row: Row) -> None:
        pass

    def say(self, text: str) -> None:
        pass


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """On a terminal, unless https://no-color.org or a dumb terminal says no."""
    return is_terminal(stream, environ) and not environ.get("NO_COLOR")


def is_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    try:
        return os.isatty(stream.fileno()) and environ.get("TERM") != "dumb"
    except (OSError, ValueError):
        return False
