"""Which calls share a batch and when it runs, told as histories under a clock that stands still."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from math import inf
from random import Random
from typing import Any

import pytest

from toolkit.policy.batching import Batch, Batching, BatchOptions, Item
from toolkit.testing import FakeClock

MS = 1 / 1024
"""A millisecond, nearly: sums of it are exact."""


class Named(Item):
    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self.name = name


class History:
    """A model that takes `takes` seconds for a batch, and requests that come at times of our choice."""

    def __init__(self, *, takes: float = 8 * MS, **options: Any) -> None:
        self.clock = FakeClock()
        self.queue: Batching[Named] = Batching(BatchOptions(**options), self.clock)
        self.takes = takes
        self.running: list[tuple[float, Batch[Named]]] = []
        self.started: list[tuple[float, str]] = []
        """When, in milliseconds, and who."""
        self.late: list[str] = []
        self.done: list[str] = []

    def comes(
        self, *names: str, at: float | None = None, key: Hashable = None, cost: float = 1.0, until: float = inf
    ) -> list[Named]:
        """`at` and `until` in milliseconds."""
        if at is not None:
            self.runs_until(at)
        items = [Named(name, key=key, cost=cost, expires_at=until * MS) for name in names]
        for item in items:
            self.queue.add(item)
        self._start_due()
        return items

    def leaves(self, item: Named, *, at: float) -> bool:
        self.runs_until(at)
        found = self.queue.remove(item)
        self._start_due()
        return found

    def runs_until(self, at: float) -> None:
        """Time passes, up to `at` milliseconds; what falls due in between happens then."""
        while (then := self._next()) <= at * MS:
            self.clock.now = max(then, self.clock.now)
            for end, batch in [each for each in self.running if each[0] <= self.clock.now]:
                self.running.remove((end, batch))
                self.queue.finished(batch, self.takes)
                self.done += [item.name for item in batch.items]
            self._start_due()
        self.clock.now = at * MS

    def ends(self) -> None:
        self.runs_until(100_000)

    @property
    def batches(self) -> list[str]:
        return [names for _, names in self.started]

    def _next(self) -> float:
        due = self.queue.due()
        return min([end for end, _ in self.running] + ([] if due is None else [self.clock.now + due]), default=inf)

    def _start_due(self) -> None:
        while self.queue.due() == 0:
            batch = self.queue.take()
            self.late += [item.name for item in batch.late]
            if batch.items:
                self.running.append((self.clock.now + self.takes, batch))
                self.started.append((self.clock.now / MS, "".join(item.name for item in batch.items)))


def test_one_that_comes_alone_runs_at_once() -> None:
    history = History(max_delay=1.0)
    for n in range(5):
        history.comes("a", at=100.0 * n)
    assert history.started == [(0, "a"), (100, "a"), (200, "a"), (300, "a"), (400, "a")]


def test_one_caller_after_the_other_never_waits() -> None:
    """The next comes as soon as the one before has its answer."""
    history = History(max_delay=1.0, takes=8 * MS)
    for n in range(5):
        history.comes("a", at=8.5 * n)
    assert [at for at, _ in history.started] == [0, 8.5, 17, 25.5, 34]


def test_those_that_come_while_the_model_works_are_the_next_batch() -> None:
    history = History()
    history.comes("a", at=0)
    for n, name in enumerate("bcd"):
        history.comes(name, at=1.0 + n)
    history.ends()
    assert history.started == [(0, "a"), (8, "bcd")]


def test_a_batch_is_no_larger_than_it_may_be_and_keeps_the_order() -> None:
    history = History(max_size=3)
    history.comes(*"abcdefgh")
    history.ends()
    assert history.batches == ["abc", "def", "gh"]


def test_a_new_one_waits_for_the_full_batches_that_are_before_it() -> None:
    history = History(max_size=2)
    history.comes("a", at=0)
    assert history.queue.wait == 0  # what a batch takes is not known yet
    history.comes(*"bcdef", at=20)
    assert history.batches == ["a", "bc"]
    assert history.queue.wait == 8 * MS  # "de" comes before, "f" shares
    history.ends()
    assert history.queue.wait == 0


def test_a_full_batch_never_waits() -> None:
    history = History(max_size=2, max_delay=1.0)
    teach(history, crowd=8)
    history.comes(*"ab", at=10_000)
    assert history.started[-1] == (10_000, "ab")


def teach(history: History, *, crowd: int) -> None:
    """It learns that so many come within a millisecond."""
    for n in range(1, 10):
        for which in range(crowd):
            history.comes("x", at=500.0 * n + which / crowd)
        history.runs_until(500.0 * n + 400)
    history.started.clear()


def test_an_idle_model_waits_where_more_are_expected_until_they_are_there() -> None:
    history = History(max_delay=5 * MS)
    teach(history, crowd=4)
    for n, name in enumerate("abcd"):
        history.comes(name, at=10_000.0 + n)
    history.ends()
    assert history.started == [(10_003, "abcd")]


def test_it_waits_no_longer_than_max_delay_and_unlearns() -> None:
    history = History(max_delay=4 * MS)
    teach(history, crowd=4)
    for n in range(1, 6):
        history.comes("a", at=10_000.0 * n)
    history.ends()
    waits = [at - 10_000.0 * n for n, (at, _) in enumerate(history.started, 1)]
    assert waits[0] == 4
    assert waits[-1] == 0


def test_it_waits_no_longer_than_a_batch_takes() -> None:
    """By then it could have answered."""
    history = History(max_delay=100 * MS, takes=2 * MS)
    teach(history, crowd=4)
    history.comes("a", at=10_000)
    history.ends()
    assert history.started == [(10_002, "a")]


def test_without_a_delay_it_never_waits() -> None:
    history = History(max_delay=0)
    teach(history, crowd=8)
    history.comes("a", at=10_000)
    assert history.started == [(10_000, "a")]


def test_callers_out_of_step_find_together() -> None:
    """Two that call again when they have their answer: at first one waits while the other runs, and in the end they share."""
    history = History(max_delay=5 * MS, takes=8 * MS)
    history.comes("a", at=0)
    history.comes("b", at=4)
    answered = 0
    for _ in range(20):
        history.runs_until((history.running[0][0] if history.running else history.clock.now) / MS)
        back, answered = history.done[answered:], len(history.done)
        history.comes(*back, at=history.clock.now / MS + 0.5)
        history.runs_until(history.clock.now / MS + 1)
    assert all(len(names) == 2 for names in history.batches[-5:])


def test_only_those_with_the_same_key_share_a_batch_and_the_oldest_leads() -> None:
    history = History()
    history.comes("x")
    for name, key in zip("aBcDe", [1, 2, 1, 2, 1], strict=True):
        history.comes(name, key=key)
    history.ends()
    assert history.batches == ["x", "ace", "BD"]


def test_a_crowd_of_one_kind_does_not_starve_another() -> None:
    history = History(max_size=2, takes=4 * MS)
    history.comes("x")
    history.comes("L", key="long")
    for _ in range(50):
        history.comes("s", key="short", at=history.clock.now / MS + 1)
    assert "L" in history.batches[:3]


def test_a_batch_costs_no_more_than_it_may() -> None:
    history = History(max_cost=10)
    history.comes("x")
    for name, cost in zip("abcdef", [4, 4, 4, 10, 1, 1], strict=True):
        history.comes(name, cost=cost)
    history.ends()
    assert history.batches == ["x", "ab", "c", "d", "ef"]


def test_one_that_costs_more_than_a_batch_may_runs_alone() -> None:
    history = History(max_cost=10)
    history.comes("x")
    for name, cost in zip("aBc", [1, 99, 1], strict=True):
        history.comes(name, cost=cost)
    history.ends()
    assert history.batches == ["x", "a", "B", "c"]


def test_one_that_gives_up_is_out_of_the_queue() -> None:
    history = History()
    history.comes("a")
    b, _ = history.comes(*"bc", at=1)
    assert history.leaves(b, at=2)
    history.ends()
    assert history.batches == ["a", "c"]
    assert (history.queue.figures.cancelled, history.queue.figures.late) == (1, 0)


def test_one_that_leaves_a_batch_was_in_no_queue() -> None:
    history = History()
    (a,) = history.comes("a")
    assert not history.leaves(a, at=1)


def test_one_whose_time_has_run_out_is_not_run() -> None:
    history = History()
    history.comes("a")
    history.comes("b", at=1, until=7)
    history.comes("c", at=2)
    history.ends()
    assert (history.batches, history.late) == (["a", "c"], ["b"])
    assert history.queue.figures.late == 1


def test_nor_one_that_would_end_after_its_deadline() -> None:
    history = History(takes=8 * MS)
    history.comes("x", at=0)
    history.comes("y", at=100)
    history.comes("b", at=101, until=115)
    history.comes("c", at=102, until=117)
    history.ends()
    assert (history.batches, history.late) == (["x", "y", "c"], ["b"])


def test_where_all_would_end_too_late_they_may_try() -> None:
    """What a batch takes is learned from those that run: it may have become faster."""
    history = History(takes=100 * MS)
    history.comes("x", at=0)
    history.runs_until(200)
    history.takes = 1 * MS
    for n in range(3):
        history.comes(str(n), at=300.0 + 100 * n, until=350.0 + 100 * n)
    history.ends()
    assert (history.batches, history.late) == (["x", "0", "1", "2"], [])


def test_several_batches_at_once_where_that_is_said() -> None:
    history = History(concurrency=2, max_size=1)
    history.comes(*"abc")
    history.ends()
    assert history.started == [(0, "a"), (0, "b"), (8, "c")]


def test_what_is_measured() -> None:
    history = History(takes=8 * MS)
    history.comes("a", at=0)
    history.comes("b", at=2, cost=3)
    history.comes("c", at=6, cost=4)
    history.ends()
    figures = history.queue.figures
    assert (figures.batches, figures.requests) == (2, 3)
    assert (figures.queue_seconds, figures.compute_seconds) == (8 * MS, 16 * MS)
    last = figures.recent[-1]
    assert (last.size, last.cost, last.queued, last.computed) == (2, 7, 6 * MS, 8 * MS)


@pytest.mark.parametrize(
    "wrong", [{"max_size": 0}, {"max_delay": -1}, {"max_cost": 0}, {"max_queue": 0}, {"concurrency": 0}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name}: "):
        BatchOptions(**wrong)


def test_the_queue_is_bounded_by_default() -> None:
    assert BatchOptions(max_size=8).capacity == 128 + 8
    assert BatchOptions(max_size=64).capacity == 4 * 64 + 64
    assert replace(BatchOptions(max_size=8, concurrency=2), max_queue=3).capacity == 3 + 16


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_each_request_is_run_once_or_told_why_not(seed: int) -> None:
    chance = Random(seed)
    history = History(
        max_size=chance.randint(1, 5),
        max_delay=chance.choice([0, 3, 50]) * MS,
        max_cost=chance.choice([inf, 6]),
        concurrency=chance.randint(1, 2),
        takes=chance.choice([1, 8, 40]) * MS,
    )
    waiting: dict[str, Named] = {}
    left: list[str] = []
    for n in range(200):
        at = history.clock.now / MS + chance.choice([0, 0, 1, 5, 30])
        if waiting and chance.random() < 0.2:
            name = chance.choice(list(waiting))
            if history.leaves(waiting.pop(name), at=at):
                left.append(name)
        else:
            until = at + chance.choice([5, 50, inf])
            (waiting[str(n)],) = history.comes(
                f"<{n}>", at=at, key=chance.randint(0, 2), cost=chance.randint(1, 4), until=until
            )
    history.ends()
    assert len(history.queue) == history.queue.running == 0
    assert_each_once(history.done, history.late, [f"<{name}>" for name in left])
    assert len(history.done) + len(history.late) + len(left) == sum(
        len(each) for each in (history.done, history.late, left)
    )
    _check_batches(history)


def assert_each_once(*groups: Sequence[str]) -> None:
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names))


def _check_batches(history: History) -> None:
    options, figures = history.queue.options, history.queue.figures
    for record in figures.recent:
        assert record.size <= options.max_size
        assert record.cost <= options.max_cost or record.size == 1
    assert figures.requests == len(history.done)
    assert figures.late >= len(history.late)
