"""What a graph said, as JSON lines in its folder: one file and one older one, each of limited size. `toolkit logs` reads them.

{"t": 1712345678.9, "replica": "gpt2", "text": "hello"}     a line that it printed; "state" where it is a state instead
{"t": 1712345678.9, "replica": "", "text": "ready: …"}      a sentence of the launcher

A state that counts has "phase", "done" and "total" too, which "text" is made of.

A replica in which several deployments run has their names too, as "deployments".
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from toolkit.launcher.lines import parse_object
from toolkit.launcher.output import Row, View

LIMIT = 32 * 1024 * 1024
"""Bytes of a file."""
_NEW, _OLD = "log.jsonl", "log.old.jsonl"
_TAIL = 0.1
"""Seconds between two looks at a file that grows."""


class Sink(Protocol):
    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


class Record:
    """A view that writes. One that cannot write any more says so once, and the graph goes on without it."""

    interval: float | None = None

    def __init__(
        self,
        file: Sink,
        clock: Callable[[], float],
        complain: Callable[[str], None] = lambda text: None,
        *,
        shared: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """`shared`: process → its deployments, where these are several."""
        self._shared = shared
        self._file = file
        self._clock = clock
        self._complain = complain
        self._is_broken = False

    def line(self, name: str, text: str, *, is_transient: bool = False) -> None:
        if not is_transient:
            self._write(**self._who(name), text=text)

    def show(self, name: str, row: Row) -> None:
        count = {"phase": row.phase, "done": row.done, "total": row.total} if row.done or row.total else {}
        self._write(**self._who(name), state=row.state, text=row.text, **count)

    def say(self, text: str) -> None:
        self._write(replica="", text=text)

    def complain(self, text: str) -> None:
        self._write(replica="", text=f"error: {text}")

    def tick(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def _who(self, name: str) -> dict[str, Any]:
        unit = _unit(name)
        return {"replica": name, **({"deployments": self._shared[unit]} if unit in self._shared else {})}

    def _write(self, **said: Any) -> None:
        if self._is_broken:
            return
        try:
            self._file.write(json.dumps({"t": round(self._clock(), 3), **said}) + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            self._is_broken = True
            why = error.strerror if isinstance(error, OSError) else error
            self._complain(f"what the graph says is not recorded any more: {why}; make room, and start it again")


class LimitedFile:
    """A file that starts anew at its limit, and keeps what was before under another name."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self._path, self._old = folder / _NEW, folder / _OLD
        self._limit = limit
        self._old.unlink(missing_ok=True)
        self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> int:
        if self._file.tell() + len(text) > self._limit:
            self._file.close()
            self._path.rename(self._old)
            self._file = self._path.open("w", encoding="utf-8", errors="backslashreplace")
        return self._file.write(text)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full: that was said when it was written to
            self._file.close()


class Views:
    """Shows everything to each."""

    def __init__(self, *views: View) -> None:
        self._views = views

    @property
    def interval(self) -> float | None:
        return min((each.interval for each in self._views if each.interval is not None), default=None)

    def line(self, name: str, text: str, *, is_transient: bool = False) -> None:
        for view in self._views:
            view.line(name, text, is_transient=is_transient)

    def show(self, name: str, row: Row) -> None:
        for view in self._views:
            view.show(name, row)

    def say(self, text: str) -> None:
        for view in self._views:
            view.say(text)

    def complain(self, text: str) -> None:
        for view in self._views:
            view.complain(text)

    def tick(self) -> None:
        for view in self._views:
            view.tick()

    def settle(self) -> None:
        for view in self._views:
            view.settle()


def read_record(
    folder: Path,
    *,
    is_growing: Callable[[], bool] = lambda: False,
    pause: Callable[[float], None] = lambda seconds: None,
) -> Iterator[dict[str, Any]]:
    """All that was said, and then what is said until nobody writes any more. Starts anew where the file does."""
    if (folder / _OLD).exists():
        yield from _read(folder / _OLD, lambda: False, pause)
    yield from _read(folder / _NEW, is_growing, pause)


def _read(path: Path, is_growing: Callable[[], bool], pause: Callable[[float], None]) -> Iterator[dict[str, Any]]:
    is_new = path.exists()
    while is_new:
        is_new = False
        with path.open("rb") as file:
            rest = b""
            while not is_new:
                was_growing = is_growing()
                rest += file.read()
                *lines, rest = rest.split(b"\n")
                yield from filter(None, map(parse_object, lines))
                if not was_growing:
                    return
                pause(_TAIL)
                is_new = path.exists() and path.stat().st_ino != os.fstat(file.fileno()).st_ino


def is_of(replica: str, names: Sequence[str], deployments: Iterable[str] = ()) -> bool:
    """Whether a replica's name, `gpt2.1#2`, belongs to one of these, or is one; `deployments` are those that share it."""
    return not names or bool({replica, replica.partition("#")[0], _unit(replica), *deployments} & set(names))


def _unit(replica: str) -> str:
    return replica.partition("#")[0].partition(".")[0]


def incarnation(replica: str) -> tuple[str, int]:
    """The place of a replica, and how many were there with it."""
    base, _, number = replica.partition("#")
    return base, int(number or 1) if (number or "1").isdecimal() else 1
