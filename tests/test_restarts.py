"""When a replica that died starts again: a clock and a chance that are handed in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from toolkit.launcher.restarts import RestartOptions, Restarts


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_pause_is_twice_the_one_before_up_to_the_longest() -> None:
    restarts = Restarts(RestartOptions(budget=10, longest=2.0), clock=Clock(), chance=lambda: 0.5)
    assert [restarts.next_delay(0.0) for _ in range(6)] == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 2.0])


def test_chance_moves_a_pause_by_a_fifth() -> None:
    for chance, expected in ((0.0, 0.16), (1.0, 0.24)):
        assert Restarts(clock=Clock(), chance=lambda chance=chance: chance).next_delay(0.0) == pytest.approx(expected)


def test_a_long_service_makes_the_next_pause_short_again() -> None:
    restarts = Restarts(clock=Clock(), chance=lambda: 0.5)
    restarts.next_delay(0.0)
    restarts.next_delay(0.0)
    assert restarts.next_delay(61.0) == pytest.approx(0.2)


def test_the_budget_is_of_the_last_minutes_only() -> None:
    clock = Clock()
    restarts = Restarts(clock=clock, chance=lambda: 0.5)
    for _ in range(5):
        assert restarts.next_delay(0.0) is not None
    assert restarts.next_delay(0.0) is None
    clock.now = 301.0
    assert restarts.next_delay(0.0) is not None
    assert restarts.count == 6
