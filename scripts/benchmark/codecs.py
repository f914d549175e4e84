"""What it costs to turn a message into bytes and back."""

from __future__ import annotations

from scripts.benchmark.case import Case

CASES: tuple[Case, ...] = ()
