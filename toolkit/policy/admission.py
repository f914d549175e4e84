"""How many calls run at once, who waits for a turn, and who is told at once that there is none.

The queue is first in, first out, and short: twice the calls that run make a wait of about two calls, whatever a call takes.
Refusing at the door is therefore immediate, and nobody who got in needs to be overtaken by newer calls (LIFO).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, Final

from toolkit.deadline import Clock

LEARNING: Final = 0.05
"""Weight of the newest call in the mean of their durations: about the last forty count."""
FORGETTING: Final = 0.01
"""How fast the shortest duration is forgotten: over about a hundred calls."""

MOST: Final = 0.5
"""Part of the latest calls that end late, above which fewer are let in. Not a smaller one: where only some methods wait for
a dependency that stalls, the others must not pay for it."""
SHRINK: Final = 0.9
GROW: Final = 0.05
"""Calls more at once for each that ends in time."""
SHORTEST_PAUSE: Final = 0.05
"""Seconds that a refused caller is asked to stay away at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdmissionOptions:
    max_concurrency: int = 64
    """Calls at once, and no more than make the service do more: where many share one processor, none of them ends in time.
    While most calls run into their deadline, fewer than this are let in."""
    max_queue: int | None = None
    """Calls that wait for a turn; None: twice `max_concurrency`, and 16 at least, so that a small burst fits."""


class Reason(Enum):
    FULL = "full"
    """As many run and wait as may."""
    HOPELESS = "hopeless"
    """It would end after its deadline."""


@dataclass(frozen=True, slots=True)
class Admit:
    """Go on; `release` when it is done."""


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: Reason
    retry_after: float | None
    """Seconds until a place should be free; None: do not come back, the time is up."""


ADMIT: Final = Admit()


class Ticket:
    """A call's place in the queue. When its turn comes or cannot come any more, it is handed out with its `outcome`."""

    __slots__ = ("expires_at", "kind", "outcome", "waiter")

    def __init__(self, expires_at: float, kind: str = "") -> None:
        self.expires_at = expires_at
        self.kind = kind
        self.outcome: Admit | Refuse | None = None
        self.waiter: Any = None
        """Whatever the owner needs in order to wake the call; nobody looks at it here."""


class Admission:
    """The door of one deployment, or, at the caller, of one handle: a slow dependency then holds no more than its share.

    Every Admit is followed by one `release`; every Ticket by its outcome or by `leave`.
    """

    def __init__(self, options: AdmissionOptions, clock: Clock = time.monotonic) -> None:
        self.running = 0
        self.seconds = 0.0
        """Mean duration of the latest calls; 0.0 before the first."""
        self.admitted = self.full = self.hopeless = 0
        self.expired = self.cancelled = 0
        """Left the queue because their deadline came; because their caller gave up."""
        self.limit = float(options.max_concurrency)
        """Calls at once, as of now."""
        self._late = 0.0
        self._max_concurrency = options.max_concurrency
        self._max_queue = max(16, 2 * options.max_concurrency) if options.max_queue is None else options.max_queue
        self._clock = clock
        self._queue: OrderedDict[Ticket, None] = OrderedDict()
        self._shortest: dict[str, float] = {}
        """Kind → about what the shortest of its latest calls took."""

    def enter(self, remaining: float | None = None, kind: str = "") -> Admit | Ticket | Refuse:
        """A call asks to run; `remaining` are the seconds to its deadline. Immediate, whatever the load.

        `kind` is its method: what one takes says nothing about another.
        """
        if self._queue or self.running >= self.limit:
            return self._enqueue(inf if remaining is None else remaining, kind)
        # Where nothing runs it may try: what calls take is learned from those that run.
        if remaining is not None and self.running and remaining < self._shortest.get(kind, 0.0):
            return self._refuse_hopeless()
        self.running += 1
        self.admitted += 1
        return ADMIT

    def release(self, seconds: float | None, *, is_late: bool = False, kind: str = "") -> Sequence[Ticket]:
        """An admitted call is over. `seconds` are what it took, None where it was cut short; `is_late` where that was by its
        deadline.

        Returns the tickets whose outcome is now known: most often none, or one that is admitted.
        """
        if seconds is not None:
            self._learn(seconds, kind)
        if is_late or seconds is not None:
            self._adapt(is_late)
        self.running -= 1
        return self._call_next() if self._queue else ()

    def leave(self, ticket: Ticket) -> Sequence[Ticket]:
        """A waiting call gives up. If it had just been admitted, its turn goes on to the tickets returned."""
        if ticket in self._queue:
            del self._queue[ticket]
            if ticket.expires_at <= self._clock():
                self.expired += 1
            else:
                self.cancelled += 1
            return ()
        return self.release(None) if ticket.outcome is ADMIT else ()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def wait(self) -> float:
        """About how many seconds a new call would wait for its turn."""
        is_busy = self._queue or self.running >= self.limit
        return self.seconds * (len(self._queue) + 1) / self.limit if is_busy else 0.0

    def _enqueue(self, remaining: float, kind: str) -> Ticket | Refuse:
        wait = self.seconds * (len(self._queue) + 1) / self.limit
        if len(self._queue) >= self._max_queue:
            self.full += 1
            return Refuse(Reason.FULL, max(wait, SHORTEST_PAUSE))
        # Half of the time left is for the call itself, and for being wrong about the wait.
        if remaining < max(2 * wait, wait + self._shortest.get(kind, 0.0)):
            return self._refuse_hopeless()
        ticket = Ticket(self._clock() + remaining, kind)
        self._queue[ticket] = None
        return ticket

    def _call_next(self) -> Sequence[Ticket]:
        decided: list[Ticket] = []
        now = self._clock()
        while self._queue and self.running < self.limit:
            ticket, _ = self._queue.popitem(last=False)
            decided.append(ticket)
            if ticket.expires_at > now + self._shortest.get(ticket.kind, 0.0):
                ticket.outcome = ADMIT
                self.running += 1
                self.admitted += 1
            else:
                ticket.outcome = self._refuse_hopeless()
        return decided

    def _refuse_hopeless(self) -> Refuse:
        self.hopeless += 1
        return Refuse(Reason.HOPELESS, None)

    def _learn(self, seconds: float, kind: str) -> None:
        self.seconds += (seconds - self.seconds) * LEARNING if self.seconds else seconds
        shortest = self._shortest.get(kind, seconds)
        self._shortest[kind] = min(seconds, shortest + (seconds - shortest) * FORGETTING)

    def _adapt(self, is_late: bool) -> None:
        self._late += (is_late - self._late) * LEARNING
        if is_late and self._late > MOST:
            self.limit = max(1.0, self.limit * SHRINK)
        elif not is_late and self.limit < self._max_concurrency:
            self.limit = min(self._max_concurrency, self.limit + GROW)
