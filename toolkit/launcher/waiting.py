"""What another terminal shows while it waits for a graph: how far the replicas are, as the graph's record has it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from toolkit.launcher.live import LiveView
from toolkit.launcher.output import PlainView, Row, is_terminal, wants_colour
from toolkit.launcher.record import read_record

SILENCE = 1.0
"""Seconds that may pass before anything is shown."""


def make_view(stream: TextIO, names: list[str], environ: Mapping[str, str]) -> PlainView:
    """A table on a terminal, lines elsewhere."""
    kind: type[PlainView] = LiveView if is_terminal(stream, environ) else PlainView
    return kind(stream, names, is_coloured=wants_colour(stream, environ), clock=time.monotonic)


@contextmanager
def shown(folder: Path, stream: TextIO, environ: Mapping[str, str]) -> Iterator[None]:
    """While the block lasts, and once it has lasted longer than `SILENCE`, what the replicas of the graph in this state folder
    come to.
    """
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(folder, stream, environ, over, time.time()), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _show(folder: Path, stream: TextIO, environ: Mapping[str, str], over: threading.Event, since: float) -> None:
    if over.wait(SILENCE):
        return
    view = make_view(stream, [], environ)

    def pause(seconds: float) -> None:
        over.wait(seconds)
        view.tick()

    for said in read_record(folder, is_growing=lambda: not over.is_set(), pause=pause):
        if "state" in said and said.get("t", 0) >= since:
            view.show(str(said["replica"]), _row(said))
    view.settle()


def _row(said: Mapping[str, Any]) -> Row:
    phase = said.get("phase", "" if said["text"] == said["state"] else said["text"])
    return Row(state=said["state"], phase=phase, done=said.get("done", 0), total=said.get("total"))
