"""How many replicas the calls need: each history with a clock that is handed in."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from toolkit.launcher.scaling import Demand, Scaler

IDLE = Demand(0, 0.0)


@dataclass
class Story:
    """One replica executes 10 calls at once; 7 of them make it busy enough."""

    count: int = 1
    now: float = 1000.0
    seen: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scaler = Scaler(1, 4, 10, clock=lambda: self.now)

    def last(self, seconds: int, demand: Demand) -> Story:
        for _ in range(seconds):
            self.now += 1
            self.count = self.scaler.decide(self.count, demand)
            self.seen.append(self.count)
        return self


def test_as_many_as_the_calls_need() -> None:
    assert Story().last(3, Demand(20, 0.0)).count == 3


def test_a_burst_changes_nothing() -> None:
    story = Story()
    for _ in range(10):
        story.last(2, Demand(100, 1.0)).last(1, IDLE)
    assert set(story.seen) == {1}


def test_a_queue_asks_for_one_more_though_few_calls_run() -> None:
    assert Story().last(3, Demand(2, 0.5)).count == 2


def test_never_more_than_the_most_nor_fewer_than_the_least() -> None:
    story = Story().last(20, Demand(1000, 9.0))
    assert story.count == 4
    assert story.last(1000, IDLE).count == 1


def test_one_leaves_at_a_time_and_late() -> None:
    story = Story(count=3).last(60, IDLE)
    assert story.count == 3
    assert story.last(1, IDLE).count == 2
    assert story.last(60, IDLE).count == 2
    assert story.last(1, IDLE).count == 1


def test_calls_that_come_back_keep_everybody() -> None:
    story = Story(count=2)
    for _ in range(5):
        story.last(50, IDLE).last(1, Demand(10, 0.0))
    assert story.count == 2


@pytest.mark.parametrize(("outstanding", "expected"), [(7, 1), (8, 2), (14, 2), (15, 3)])
def test_the_edges_of_enough(outstanding: int, expected: int) -> None:
    assert Story().last(3, Demand(outstanding, 0.0)).count == expected
