"""A deadline is a point in time; a timeout is a duration. Seconds as floats everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Deadline:
    """The moment after which nobody waits for the answer any more."""

    at: float
    """Seconds on `clock`."""
    clock: Clock = field(default=time.monotonic, repr=False, compare=False)

    @classmethod
    def after(cls, timeout: float, clock: Clock = time.monotonic) -> Deadline:
        """The point `timeout` seconds from now."""
        return cls(clock() + timeout, clock)

    def remaining(self) -> float:
        """Seconds left; negative once it has passed."""
        return self.at - self.clock()

    def is_expired(self) -> bool:
        return self.remaining() <= 0


def earliest(*deadlines: Deadline | None) -> Deadline | None:
    """The first of them to come; None when there is none."""
    found = None
    for deadline in deadlines:
        if deadline is not None and (found is None or deadline.at < found.at):
            found = deadline
    return found
