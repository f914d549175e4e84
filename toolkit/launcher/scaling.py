"""How many replicas a deployment needs for the calls that it has. Pure: the clock is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingOptions:
    busy: float = 0.7
    """Part of the calls that a replica may execute at once, above which there should be more replicas."""
    wait: float = 0.1
    """Seconds in a queue from which on there should be one more, whatever the number of calls."""
    up_after: float = 2.0
    """Seconds that more must be wanted before there are more: a burst is for the queue."""
    down_after: float = 60.0
    """Seconds that fewer must be enough before one leaves: a model takes long to come back."""


DEFAULT_SCALING: Final = ScalingOptions()


@dataclass(frozen=True, slots=True)
class Demand:
    """What all replicas of a deployment have to do."""

    outstanding: float
    """Calls that run or wait."""
    wait: float
    """Seconds that a new call would wait at the replica where that is longest."""


class Scaler:
    """Decides for one deployment."""

    def __init__(
        self,
        least: int,
        most: int,
        capacity: int,
        options: ScalingOptions = DEFAULT_SCALING,
        *,
        clock: Callable[[], float],
    ) -> None:
        """`capacity` are the calls that one replica executes at once."""
        self._least = least
        self._most = most
        self._share = capacity * options.busy
        self._options = options
        self._clock = clock
        self._more_since: float | None = None
        self._fewer_since: float | None = None

    def decide(self, count: int, demand: Demand) -> int:
        """The number of replicas from now on. Ask about once a second."""
        wanted = self._wanted(count, demand)
        now = self._clock()
        self._more_since = (self._more_since or now) if wanted > count else None
        self._fewer_since = (self._fewer_since or now) if wanted < count else None
        if self._more_since is not None and now - self._more_since >= self._options.up_after:
            self._more_since = None
            return wanted
        if self._fewer_since is not None and now - self._fewer_since >= self._options.down_after:
            self._fewer_since = None
            return count - 1
        return count

    def _wanted(self, count: int, demand: Demand) -> int:
        wanted = ceil(demand.outstanding / self._share)
        if demand.wait > self._options.wait:
            wanted = max(wanted, count + 1)
        return min(self._most, max(self._least, wanted))
