"""What a case promises, and how that is said."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_START = time.monotonic()


@dataclass(frozen=True, slots=True)
class Row:
    """One promise and what became of it."""

    case: str
    what: str
    value: float
    bound: Literal["<=", ">="]
    limit: float
    unit: str = ""
    measured: Mapping[str, float] = field(default_factory=dict)
    """More figures, without a target."""

    @property
    def target(self) -> str:
        return f"{self.bound} {self.limit:g}"

    @property
    def met(self) -> bool:
        return self.value <= self.limit if self.bound == "<=" else self.value >= self.limit

    def as_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "what": self.what,
            "value": round(self.value, 4),
            "unit": self.unit,
            "target": self.target,
            "met": self.met,
            **{key: round(value, 4) for key, value in self.measured.items()},
        }

    def as_text(self) -> str:
        measured = ", ".join(f"{key} {value:.4g}" for key, value in self.measured.items())
        return (
            f"{self.case:9} {self.what:42} {self.value:9.4g} {self.unit:4} {self.target:8} "
            f"{'met' if self.met else 'MISSED':7} {measured}".rstrip()
        )


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    run: Callable[[], AsyncIterator[Row]]

    @property
    def what(self) -> str:
        """What it does, in a line: how the docstring of `run` begins."""
        return (self.run.__doc__ or "").partition("\n")[0]


def say(text: str) -> None:
    """How far it has come, on standard error."""
    sys.stderr.write(f"{time.monotonic() - _START:6.1f} s  {text}\n")
    sys.stderr.flush()
