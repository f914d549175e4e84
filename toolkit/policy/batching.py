"""Which calls share a batch, and when it runs.

Calls that come while the model works wait, and are the next batch: the busier the model, the larger its batches, with nothing
to tune. Only an idle model has a choice, to start or to wait for more. It waits where it has learned that more come, no longer
than `max_delay` or a batch takes, so that a lone caller never waits.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf
from typing import Final, Generic, TypeVar

from toolkit.deadline import Clock

LEARNING: Final = 0.5
"""Weight of the newest observation in what is expected: four windows are enough to learn, and to forget."""
FORGETTING: Final = 0.01
"""How fast the shortest batch is forgotten: over about a hundred."""
RECENT: Final = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOptions:
    max_size: int = 32
    """Requests of a batch."""
    max_delay: float = 0.005
    """Seconds that an idle model may wait for more."""
    max_cost: float = inf
    """What the requests of a batch may cost together. One that costs more runs alone."""
    max_queue: int | None = None
    """Requests that wait for a batch; None: four batches, 128 at least."""
    concurrency: int = 1
    """Batches at once."""

    def __post_init__(self) -> None:
        for name, least in (("max_size", 1), ("max_delay", 0), ("max_queue", 1), ("concurrency", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name}: {value} is not {least} or more")
        if not self.max_cost > 0:
            raise ValueError(f"max_cost: {self.max_cost} is not more than 0")

    @property
    def capacity(self) -> int:
        """Requests that wait or are in a batch."""
        waiting = max(128, 4 * self.max_size) if self.max_queue is None else self.max_queue
        return waiting + self.concurrency * self.max_size


class Item:
    """A request that waits for a batch. Subclass it to carry what its owner needs."""

    __slots__ = ("arrived_at", "cost", "expires_at", "key")

    def __init__(self, *, key: Hashable = None, cost: float = 1.0, expires_at: float = inf) -> None:
        self.key = key
        self.cost = cost
        self.expires_at = expires_at
        self.arrived_at = 0.0


I = TypeVar("I", bound=Item)  # noqa: E741 - an item


@dataclass(frozen=True, slots=True)
class Batch(Generic[I]):
    items: list[I]
    """Those to run, in the order of their arrival; none where all came too late."""
    late: list[I]
    """Those that would end after their deadline. They are out of the queue."""
    queued: float
    """Seconds that the first of the items has waited."""


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch that was run."""

    size: int
    cost: float
    queued: float
    """Seconds that its first request waited."""
    computed: float
    """Seconds that the handler took."""


@dataclass(slots=True)
class BatchFigures:
    """What became of the requests, since the start."""

    batches: int = 0
    requests: int = 0
    """Those that were run."""
    queue_seconds: float = 0.0
    """All of their waits together."""
    compute_seconds: float = 0.0
    """All batches together."""
    late: int = 0
    """Left the queue because their deadline came, or would have come before the end of their batch."""
    cancelled: int = 0
    """Left the queue because their callers gave up."""
    recent: deque[BatchRecord] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The latest batches, newest last."""


class Batching(Generic[I]):
    """The queue of one method. Ask `due` after each change, and `take` when it says 0; each batch taken that has items is
    followed by one `finished`.
    """

    def __init__(self, options: BatchOptions, clock: Clock = time.monotonic) -> None:
        self.options = options
        self.figures = BatchFigures()
        self.running = 0
        """Batches that are being run."""
        self._clock = clock
        self._queue: OrderedDict[I, None] = OrderedDict()
        self._groups: dict[Hashable, _Group[I]] = {}
        self._gathering = _Gathering()
        self._seconds = self._shortest = 0.0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def wait(self) -> float:
        """About how many seconds the full batches take that would run before the one of a new request."""
        return len(self._queue) // self.options.max_size * self._seconds / self.options.concurrency

    def add(self, item: I) -> None:
        """Raises TypeError where its key is none, or its cost is no number."""
        item.arrived_at = self._clock()
        group = self._groups.get(item.key) or _Group()
        group.add(item)
        self._groups[item.key] = group
        self._queue[item] = None
        self._gathering.came(item.arrived_at)

    def remove(self, item: I) -> bool:
        """Its caller does not wait any more. False: it is in no queue, but in a batch."""
        if item not in self._queue:
            return False
        self._drop(item)
        if item.expires_at <= self._clock():
            self.figures.late += 1
        else:
            self.figures.cancelled += 1
        return True

    def due(self) -> float | None:
        """Seconds until a batch should run: 0.0 now, None when nothing can run before the next change."""
        if not self._queue or self.running >= self.options.concurrency:
            return None
        now = self._clock()
        if not self._gathering.is_open:
            self._gathering.open(now, min(self.options.max_delay, self._seconds), len(self._queue))
        if len(self._queue) >= self._gathering.expected or any(map(self._is_full, self._groups.values())):
            return 0.0
        return max(self._gathering.ends_at - now, 0.0)

    def take(self) -> Batch[I]:
        """The next batch: those that share the key of whoever came first."""
        now = self._clock()
        group = self._groups[next(iter(self._queue)).key]
        too_late = self._too_late(group, now)
        items: list[I] = []
        late: list[I] = []
        cost = 0.0
        for item in group.items:
            if item.expires_at <= too_late:
                late.append(item)
            elif items and (len(items) >= self.options.max_size or cost + item.cost > self.options.max_cost):
                break
            else:
                items.append(item)
                cost += item.cost
        for item in (*items, *late):
            self._drop(item)
        self.figures.late += len(late)
        self.running += bool(items)
        self._gathering.is_open = False
        return Batch(items, late, now - items[0].arrived_at if items else 0.0)

    def finished(self, batch: Batch[I], seconds: float | None) -> None:
        """A batch has ended; `seconds` are what it took, None where it was cut short."""
        self.running -= 1
        self._gathering.learn()
        if seconds is None:
            return
        self._learn(seconds)
        size, started = len(batch.items), batch.items[0].arrived_at + batch.queued
        figures = self.figures
        figures.batches += 1
        figures.requests += size
        figures.queue_seconds += sum(started - item.arrived_at for item in batch.items)
        figures.compute_seconds += seconds
        figures.recent.append(BatchRecord(size, sum(item.cost for item in batch.items), batch.queued, seconds))

    def _drop(self, item: I) -> None:
        del self._queue[item]
        group = self._groups[item.key]
        group.drop(item)
        if not group.items:
            del self._groups[item.key]

    def _is_full(self, group: _Group[I]) -> bool:
        return len(group.items) >= self.options.max_size or group.cost >= self.options.max_cost

    def _too_late(self, group: _Group[I], now: float) -> float:
        """A deadline up to here is not worth starting for. Where nobody has a later one they may try: how long a batch takes
        is learned from those that run.
        """
        ends = now + self._shortest
        return ends if any(item.expires_at > ends for item in group.items) else now

    def _learn(self, seconds: float) -> None:
        if not self._seconds:
            self._seconds = self._shortest = seconds
            return
        self._seconds += (seconds - self._seconds) * LEARNING
        self._shortest = min(seconds, self._shortest + (seconds - self._shortest) * FORGETTING)


class _Group(Generic[I]):
    """Those that may share a batch."""

    __slots__ = ("cost", "items")

    def __init__(self) -> None:
        self.items: dict[I, None] = {}
        self.cost = 0.0

    def add(self, item: I) -> None:
        self.cost += item.cost
        self.items[item] = None

    def drop(self, item: I) -> None:
        del self.items[item]
        self.cost -= item.cost


class _Gathering:
    """How many come together: within a window that opens when a batch could run, and counts until it ends or that batch
    does. Later ones may be the same callers once more. A window in which nobody comes, of those whom the batch before left
    over, says nothing.
    """

    __slots__ = ("_is_counting", "_is_fresh", "_mean", "_seen", "ends_at", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        """A batch could run and has not been taken yet."""
        self.ends_at = 0.0
        self._mean = 1.0
        self._seen = 0
        self._is_counting = False
        self._is_fresh = False

    @property
    def expected(self) -> int:
        return round(self._mean)

    def open(self, now: float, seconds: float, waiting: int) -> None:
        self.learn()
        self.is_open = self._is_counting = True
        self.ends_at = now + seconds
        self._seen = waiting

    def came(self, now: float) -> None:
        if not self._is_counting:
            self._is_fresh = True
        elif now <= self.ends_at:
            self._is_fresh = True
            self._seen += 1

    def learn(self) -> None:
        """What the window has seen counts from now on."""
        if self._is_counting:
            if self._is_fresh:
                self._mean += (self._seen - self._mean) * LEARNING
            self._is_counting = self._is_fresh = False
