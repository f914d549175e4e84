"""Where and when a comparison ran: figures mean nothing without."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Machine:
    date: str
    cores: int
    processor: str
    memory_gib: float
    system: str
    python: str
    load_before: float
    load_after: float = 0.0

    @classmethod
    def here(cls) -> Machine:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
        return cls(
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            cores=os.cpu_count() or 1,
            processor=_processor(),
            memory_gib=round(memory, 1),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            load_before=round(os.getloadavg()[0], 2),
        )

    def after(self) -> Machine:
        return replace(self, load_after=round(os.getloadavg()[0], 2))

    @property
    def was_busy(self) -> bool:
        """Whether other work was under way when the comparison began: its systems would not have met the same machine."""
        return self.load_before > self.cores / 2

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.date}; {self.cores} cores ({self.processor}), {self.memory_gib:g} GiB, {self.system}, Python {self.python}; "
            f"load average {self.load_before:g} before, {self.load_after:g} after"
        )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:  # not Linux
        pass
    return platform.machine()
