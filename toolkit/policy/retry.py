"""Whether a failed attempt is made again, and when. A budget keeps retries a fraction of the calls that succeed.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md, but for the budget: there throttling counts
failures; here successes pay for retries, so that a callee that fails every call is left nearly alone. And a pause that the callee
asks for has a limit here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import random
from typing import Final

from toolkit.deadline import Clock
from toolkit.errors import Code

Random = Callable[[], float]
"""A number in [0, 1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetOptions:
    ratio: float = 0.1
    """Retries that one success pays for: with failures here and there, a tenth more calls at most."""
    burst: float = 50
    """Retries that can be saved up: a replica that dies fails all its calls in flight at once."""
    reserve: float = 10
    """Retries that a new handle starts with, and to which time alone refills."""
    per_second: float = 1.0
    """How fast time refills the reserve, for handles too quiet to earn a retry."""


class RetryBudget:
    """What one handle may spend on attempts beyond the first, retries and hedges together.

    In any span the attempts beyond the first number at most reserve + per_second × seconds + ratio × successes, and what
    was saved before it.
    """

    def __init__(self, options: BudgetOptions, clock: Clock = time.monotonic) -> None:
        self.spent = 0
        """Attempts that it paid for."""
        self.refused = 0
        """Attempts that it had nothing left for."""
        self._options = options
        self._ratio, self._burst = options.ratio, options.burst
        self._balance = options.reserve
        self._clock = clock
        self._refilled_at = clock()

    def succeeded(self) -> None:
        """The callee answered a call: with a reply, or with an error that no retry would cure."""
        balance = self._balance + self._ratio
        self._balance = balance if balance < self._burst else self._burst

    def withdraw(self, *, keep: float = 0.0) -> bool:
        """Pay for one more attempt; False, and nothing is paid, where less than `keep` would be left."""
        self._refill()
        if self._balance < 1 + keep:
            self.refused += 1
            return False
        self._balance -= 1
        self.spent += 1
        return True

    def _refill(self) -> None:
        now = self._clock()
        if self._balance < self._options.reserve:
            gained = (now - self._refilled_at) * self._options.per_second
            self._balance = min(self._options.reserve, self._balance + gained)
        self._refilled_at = now


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryOptions:
    attempts: int = 4
    """Attempts at one call, the first included: more than the replicas that are likely to die under it."""
    initial_backoff: float = 0.02
    """Seconds that the first retry waits at most: another replica can answer at once."""
    max_backoff: float = 1.0
    """Seconds that any retry waits at most."""
    max_pushback: float = 30.0
    """Seconds that a callee may ask to wait at most: who asks for longer gets no retry, and the caller the error."""
    multiplier: float = 2.0
    """How much longer each retry may wait than the one before."""
    codes: frozenset[Code] = frozenset({Code.UNAVAILABLE})
    """What a later try may cure. RESOURCE_EXHAUSTED is not among them: retries make an overload worse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """How an attempt ended."""

    code: Code
    idempotent: bool
    """Doing it twice does no harm: the method says so."""
    relayed: bool = False
    """It comes from deeper (`ServiceError.path`, as it came in, is not empty): the callee is well, and whoever called the
    one that failed has already retried. Were every layer to retry, a chain of four would try its leaf 4³ times."""
    unseen: bool = False
    """No handler saw the request, as when the connection was refused: any method may be sent again."""
    replied: bool = False
    """A streamed reply has been handed out: what follows it cannot be had again."""
    pushback: float | None = None
    """Seconds that the callee asks to wait; negative: do not come back."""


DEFAULT_OPTIONS: Final = RetryOptions()


class RetryPolicy:
    """The retries of one handle."""

    def __init__(self, budget: RetryBudget, options: RetryOptions = DEFAULT_OPTIONS, random: Random = random) -> None:
        self.budget = budget
        self._options = options
        self._random = random

    def next_delay(self, failure: Failure, *, attempt: int, remaining: float | None) -> float | None:
        """Seconds to wait before the next attempt, which is then paid for; None: give up.

        `attempt` counts from 1 and is the one that failed; `remaining` are the seconds to the call's deadline. The delay
        is random between nothing and the backoff, so that callers who failed together do not come back together.
        """
        options = self._options
        if failure.code not in options.codes or attempt >= options.attempts or not _may_repeat(failure):
            return None
        backoff = min(options.max_backoff, options.initial_backoff * options.multiplier ** (attempt - 1))
        if failure.pushback is not None:
            if failure.pushback > options.max_pushback:
                return None
            delay = failure.pushback
        else:
            delay = self._random() * (backoff if remaining is None else min(backoff, remaining))
        if delay < 0 or (remaining is not None and delay >= remaining):
            return None
        return delay if self.budget.withdraw() else None


def _may_repeat(failure: Failure) -> bool:
    return (failure.idempotent or failure.unseen) and not failure.relayed and not failure.replied
