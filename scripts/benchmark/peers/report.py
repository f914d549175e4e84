"""The figures side by side: as text, as JSON, and in docs/benchmarks.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from scripts.benchmark.peers.machine import Machine
from scripts.benchmark.peers.work import Found

PAGE: Final = Path(__file__).parents[3] / "docs" / "benchmarks.md"
BEGIN: Final = "<!-- written by `scripts/bench peers`: begin -->"
END: Final = "<!-- end -->"
HEAD: Final = ("system", "success", "p50 ms", "p99 ms", "calls/s", "calls")


@dataclass(frozen=True, slots=True)
class Row:
    """One work through one system. Without a good call there are no times; `note` says what went wrong, if anything did."""

    work: str
    system: str
    calls: int = 0
    good: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    per_s: float = 0.0
    note: str = ""

    @classmethod
    def of(cls, work: str, system: str, found: Found | None, reason: str) -> Row:
        if found is None:
            return cls(work, system, note=f"not measured: {reason}")
        good = len(found.timings)
        failed = sum(found.errors.values())
        worst = max(found.errors.items(), key=lambda each: each[1], default=None)
        note = f"{work}: {failed} failed, {worst[1]} of them with {worst[0]}" if worst else ""
        return cls(
            work,
            system,
            calls=good + failed,
            good=good,
            p50_ms=percentile(found.timings, 0.5),
            p99_ms=percentile(found.timings, 0.99),
            per_s=round(good / found.seconds, 1) if found.seconds else 0.0,
            note=note or (f"not wholly measured: {reason}" if reason else ""),
        )

    @property
    def success(self) -> float:
        return self.good / self.calls if self.calls else 0.0

    def cells(self) -> tuple[str, ...]:
        if not self.calls:
            return (self.system, "–", "–", "–", "–", "0")
        percent = f"{math.floor(self.success * 1000) / 10:g} %"  # never rounded up to 100
        return (self.system, percent, _figure(self.p50_ms), _figure(self.p99_ms), _figure(self.per_s), f"{self.calls}")


@dataclass(frozen=True, slots=True)
class Comparison:
    rows: Sequence[Row]
    machine: Machine

    @property
    def met(self) -> bool:
        """Whether every call through ours came back right."""
        ours = [row for row in self.rows if row.system == self.rows[0].system]
        return all(row.calls and row.good == row.calls for row in ours)

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(row), "success": row.success} for row in self.rows]
        return {"case": "peers", "met": self.met, "machine": self.machine.as_json(), "rows": rows}

    def as_text(self) -> str:
        parts = [str(self.machine)]
        for work, rows in groupby(self.rows, lambda row: row.work):
            parts += [f"**{work}**", _table(list(rows))]
        notes = dict.fromkeys(f"- {row.system}: {row.note}" for row in self.rows if row.note)
        return "\n\n".join([*parts, *(["What went wrong:", "\n".join(notes)] if notes else [])])

    def write(self, page: Path = PAGE) -> None:
        """Put the tables into the page, in place of those of the last run; what stands round them is written by hand."""
        before, begin, rest = page.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{page} has no place for the tables: put the lines {BEGIN!r} and {END!r} there")
        page.write_text(f"{before}{begin}\n\n{self.as_text()}\n\n{end}{after}")


def percentile(timings: Sequence[float], share: float) -> float | None:
    """In milliseconds, by nearest rank."""
    if not timings:
        return None
    return round(sorted(timings)[math.ceil(share * len(timings)) - 1] * 1000, 3)


def _figure(value: float | None) -> str:
    """Three digits that count, more where there are more before the point."""
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _table(rows: Sequence[Row]) -> str:
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [_line(lines[0], widths), _line(rule, widths), *(_line(line, widths) for line in lines[1:])]
    return "\n".join(padded)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (*zip(cells, widths, strict=True),)
    return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]) + " |"
