"""When a slow call is sent a second time, to another replica; the first answer wins.

Source: Dean and Barroso, The Tail at Scale, CACM 56(2), 2013.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from toolkit.policy.retry import RetryBudget


@dataclass(frozen=True, kw_only=True, slots=True)
class HedgeOptions:
    attempts: int = 2
    """Attempts at one call that may be under way together, the first included."""
    delay: float | None = None
    """Seconds after an attempt until the next one; None: worked out from the latencies seen."""
    quantile: float = 0.9
    """Of the latencies: slower than nine in ten is slow. Not the 95th of the paper: where one call in twenty hangs, that
    one jumps between the calls that hang and those that do not."""
    factor: float = 2.0
    """How many times that latency to wait: calls that are merely at the end of the usual are not sent twice."""
    min_delay: float = 0.005
    """Seconds below which a second attempt costs more than it can win."""


class Quantile:
    """A quantile of the last values: exact, but worked out only after every `STEP` of them."""

    SIZE: Final = 200
    """Values remembered: the 90th percentile of that many is between the 86th and the 94th."""
    STEP: Final = 20

    def __init__(self, quantile: float) -> None:
        self.value: float | None = None
        """None before the first `STEP` values."""
        self._quantile = quantile
        self._values: deque[float] = deque(maxlen=self.SIZE)
        self._due = self.STEP

    def add(self, value: float) -> None:
        self._values.append(value)
        self._due -= 1
        if not self._due:
            self._due = self.STEP
            self.value = sorted(self._values)[int(self._quantile * len(self._values))]


class HedgePolicy:
    """The hedges of one method of one handle: for idempotent methods with one request and one reply."""

    def __init__(self, budget: RetryBudget, options: HedgeOptions, *, keep: float = 10.0) -> None:
        """`keep` attempts of the budget are left to retries, which save calls where hedges only speed them up."""
        self.sent = 0
        """Attempts that it has added to slow ones."""
        self.won = 0
        """Those of them that were answered first."""
        self._budget = budget
        self._options = options
        self._keep = keep
        self._latency = Quantile(options.quantile)

    def next_delay(self, *, attempt: int, remaining: float | None) -> float | None:
        """Seconds after sending attempt number `attempt`, counted from 1, until it should be joined by another; None: never."""
        if attempt >= self._options.attempts:
            return None
        delay = self._delay()
        return None if delay is None or (remaining is not None and delay >= remaining) else delay

    def start(self) -> bool:
        """Pay for the next attempt, now that the delay has passed; False: there is nothing to pay it with."""
        is_paid = self._budget.withdraw(keep=self._keep)
        self.sent += is_paid
        return is_paid

    def answered(self, latency: float, *, by_hedge: bool = False) -> None:
        """A call was answered, `latency` seconds after its first attempt was sent."""
        self._latency.add(latency)
        self.won += by_hedge

    def _delay(self) -> float | None:
        if self._options.delay is not None:
            return self._options.delay
        usual = self._latency.value
        return None if usual is None else max(self._options.min_delay, self._options.factor * usual)
