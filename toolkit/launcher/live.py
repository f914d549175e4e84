"""The view of a terminal: while models load, one row a replica below the lines; afterwards lines alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from toolkit.launcher.output import PlainView, Row

_STYLES = {"ready": "green", "failed": "red", "stopped": "dim", "pending": "dim"}
_BAR_WIDTH = 24


class LiveView(PlainView):
    """Redraws at most every `interval` seconds, in the caller's thread."""

    def __init__(self, stream: TextIO, names: Sequence[str], *, is_coloured: bool, clock: Callable[[], float]) -> None:
        super().__init__(stream, names, is_coloured=is_coloured, clock=clock)
        self.interval = 0.1
        self._rows = {name: Row(state="pending") for name in names}
        self._drawn = 0.0
        console = Console(file=stream, force_terminal=True, no_color=not is_coloured, highlight=False, markup=False)
        self._live: Live | None = Live(
            console=console,
            get_renderable=self._table,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def line(self, name: str, text: str, *, is_transient: bool = False) -> None:
        if self._live is None or not is_transient:
            super().line(name, text, is_transient=is_transient)
        elif text:
            self._rows[name] = Row(state=self._rows[name].state, phase=text)
            self.tick()

    def show(self, name: str, row: Row) -> None:
        self._rows[name] = row
        if self._live is None:
            super().show(name, row)
        else:
            self.tick()

    def tick(self) -> None:
        if self._live is not None and self._clock() - self._drawn >= (self.interval or 0):
            self._drawn = self._clock()
            with contextlib.suppress(OSError, ValueError):
                self._live.refresh()

    def settle(self) -> None:
        if self._live is not None:
            live, self._live, self.interval = self._live, None, None
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def _write(self, text: str) -> None:
        if self._live is None:
            super()._write(text)
        else:
            with contextlib.suppress(OSError, ValueError):
                self._live.console.print(Text.from_ansi(text), soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, row in self._rows.items():
            table.add_row(
                name, Text(row.state, style=_STYLES.get(row.state, "cyan")), _bar(row), row.text if row.phase else ""
            )
        return table


def _bar(row: Row) -> ProgressBar | str:
    if row.state in ("starting", "loading"):
        return ProgressBar(total=row.total or None, completed=row.done, pulse=not row.total, width=_BAR_WIDTH)
    return ""
