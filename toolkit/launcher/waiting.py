"""What a verb shows while it keeps somebody waiting: how far the replicas of a graph are, or how far it is itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

from toolkit.launcher.live import LiveView
from toolkit.launcher.output import PlainView, Row, is_terminal, wants_colour
from toolkit.launcher.record import read_record

SILENCE = 1.0
"""Seconds that may pass before anything is shown."""
_LOOK_AGAIN = 0.1
_BUSY = "loading"


class Report(Protocol):
    def __call__(self, phase: str, done: float = 0, total: float | None = None, /) -> None: ...


def make_view(stream: TextIO, names: list[str], environ: Mapping[str, str]) -> PlainView:
    """A table on a terminal, lines elsewhere."""
    kind: type[PlainView] = LiveView if is_terminal(stream, environ) else PlainView
    return kind(stream, names, is_coloured=wants_colour(stream, environ), clock=time.monotonic)


@contextmanager
def shown(folder: Path, stream: TextIO, environ: Mapping[str, str]) -> Iterator[None]:
    """While the block lasts, and once it has lasted longer than `SILENCE`, what the replicas of the graph in this state folder
    come to.
    """
    since = time.time()

    def follow(view: PlainView, over: threading.Event) -> None:
        def pause(seconds: float) -> None:
            over.wait(seconds)
            view.tick()

        for said in read_record(folder, is_growing=lambda: not over.is_set(), pause=pause):
            if "state" in said and said.get("t", 0) >= since:
                view.show(str(said["replica"]), _row(said))

    with _shown_late(follow, stream, environ):
        yield


@contextmanager
def busy(name: str, stream: TextIO, environ: Mapping[str, str]) -> Iterator[Report]:
    """A function to be told how far something is: its phase, how much of it is done, and of how much. The last that it was
    told is shown under this name, while the block lasts and once it has lasted longer than `SILENCE`.
    """
    row = Row(state=_BUSY)

    def report(phase: str, done: float = 0, total: float | None = None) -> None:
        nonlocal row
        row = Row(state=_BUSY, phase=phase, done=done, total=total)

    def follow(view: PlainView, over: threading.Event) -> None:
        view.show(name, row)
        while not over.wait(view.interval or _LOOK_AGAIN):
            view.show(name, row)

    with _shown_late(follow, stream, environ):
        yield report


@contextmanager
def _shown_late(
    follow: Callable[[PlainView, threading.Event], None], stream: TextIO, environ: Mapping[str, str]
) -> Iterator[None]:
    """In a thread, where the block lasts; `follow` is done when the event says that it is over."""
    over = threading.Event()

    def show() -> None:
        if not over.wait(SILENCE):
            view = make_view(stream, [], environ)
            follow(view, over)
            view.settle()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _row(said: Mapping[str, Any]) -> Row:
    phase = said.get("phase", "" if said["text"] == said["state"] else said["text"])
    return Row(state=said["state"], phase=phase, done=said.get("done", 0), total=said.get("total"))
