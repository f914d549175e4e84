"""When a replica that died starts again, and when it does so no more. Pure: clock and chance are handed in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import random
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartOptions:
    """Seconds, but for `budget`."""

    first: float = 0.2
    longest: float = 30.0
    """Each pause is twice the one before, up to this."""
    jitter: float = 0.2
    """Part of a pause that is left to chance, so that replicas that died together do not start together."""
    calm: float = 60.0
    """Serving for so long makes what was before forgotten."""
    budget: int = 5
    """Restarts within `period`; one more, and it is given up."""
    period: float = 300.0


DEFAULT_RESTARTS: Final = RestartOptions()


class Restarts:
    """The restarts of one place in a deployment."""

    def __init__(
        self,
        options: RestartOptions = DEFAULT_RESTARTS,
        *,
        clock: Callable[[], float],
        chance: Callable[[], float] = random,
    ) -> None:
        self._options = options
        self._clock = clock
        self._chance = chance
        self._row = 0
        self._spent: deque[float] = deque()
        self.count = 0
        """All there ever were."""

    def next_delay(self, served: float) -> float | None:
        """Seconds until it may start again, having served for `served` seconds. None: give it up."""
        options, now = self._options, self._clock()
        while self._spent and now - self._spent[0] > options.period:
            self._spent.popleft()
        if len(self._spent) >= options.budget:
            return None
        if served >= options.calm:
            self._row = 0
        delay = min(options.longest, options.first * 2.0**self._row)
        self._row += 1
        self.count += 1
        self._spent.append(now)
        return delay * (1 + options.jitter * (2 * self._chance() - 1))
