"""Hedges: when a second attempt goes out, and how few do."""

from __future__ import annotations

from random import Random

import pytest

from toolkit.policy.hedge import HedgeOptions, HedgePolicy, Quantile
from toolkit.policy.retry import BudgetOptions, RetryBudget
from toolkit.testing import FakeClock


def budget(**options: float) -> RetryBudget:
    return RetryBudget(BudgetOptions(**options), FakeClock())


def test_a_fixed_delay_holds_from_the_first_call() -> None:
    assert HedgePolicy(budget(), HedgeOptions(delay=0.1)).next_delay(attempt=1, remaining=None) == 0.1


def test_no_more_attempts_than_allowed() -> None:
    hedges = HedgePolicy(budget(), HedgeOptions(delay=0.1, attempts=3))
    assert [hedges.next_delay(attempt=n, remaining=None) for n in (1, 2, 3, 4)] == [0.1, 0.1, None, None]


def test_no_hedge_that_would_come_after_the_deadline() -> None:
    hedges = HedgePolicy(budget(), HedgeOptions(delay=0.1))
    assert hedges.next_delay(attempt=1, remaining=0.2) == 0.1
    assert hedges.next_delay(attempt=1, remaining=0.1) is None


def test_the_delay_is_learned() -> None:
    hedges = HedgePolicy(budget(), HedgeOptions(quantile=0.9, factor=2.0))
    assert hedges.next_delay(attempt=1, remaining=None) is None, "nothing is known yet"
    for n in range(100):
        hedges.answered(0.001 * (n + 1))
    assert hedges.next_delay(attempt=1, remaining=None) == pytest.approx(0.182)


def test_calls_that_take_no_time_are_not_sent_twice() -> None:
    hedges = HedgePolicy(budget(), HedgeOptions())
    for _ in range(100):
        hedges.answered(0.0001)
    assert hedges.next_delay(attempt=1, remaining=None) == 0.005


def test_a_hedge_is_paid_for_and_leaves_the_reserve_to_retries() -> None:
    purse = budget(reserve=10, ratio=1.0)
    hedges = HedgePolicy(purse, HedgeOptions(delay=0.1))
    assert not hedges.start()
    purse.succeeded()
    assert hedges.start()
    assert not hedges.start()
    assert purse.withdraw(), "a retry may still take of the reserve"


def test_a_quantile_of_few_values_is_not_believed() -> None:
    median = Quantile(0.5)
    for n in range(Quantile.STEP - 1):
        median.add(n)
    assert median.value is None
    median.add(0.0)
    assert median.value == 9


@pytest.mark.parametrize("seed", range(5))
def test_a_quantile_is_near_the_true_one(seed: int) -> None:
    random, tail = Random(seed), Quantile(0.9)
    for _ in range(1000):
        tail.add(random.random())
    assert tail.value == pytest.approx(0.9, abs=0.08)


def test_a_quantile_forgets_what_was() -> None:
    tail = Quantile(0.9)
    for _ in range(1000):
        tail.add(10.0)
    for _ in range(Quantile.SIZE):
        tail.add(0.1)
    assert tail.value == 0.1


def test_one_call_in_twenty_hangs_and_nobody_notices() -> None:
    """The tail of the 99th is cut to a fifth for at most six calls more in a hundred."""
    random, purse = Random(3), budget()
    hedges = HedgePolicy(purse, HedgeOptions())

    def replica() -> float:
        return 0.02 * (0.8 + 0.4 * random.random()) + (0.5 if random.random() < 0.05 else 0.0)

    plain, hedged = [], []
    for _ in range(5000):
        took = replica()
        plain.append(took)
        delay = hedges.next_delay(attempt=1, remaining=3.0)
        if delay is not None and took > delay and hedges.start():
            took = min(took, delay + replica())
        hedges.answered(took)
        purse.succeeded()
        hedged.append(took)
    assert sorted(plain)[4950] >= 5 * sorted(hedged)[4950]
    assert purse.spent <= 0.06 * 5000


def test_where_every_call_is_slow_hedges_stay_within_the_budget() -> None:
    purse = budget()
    hedges = HedgePolicy(purse, HedgeOptions(delay=0.01))
    for _ in range(1000):
        if hedges.next_delay(attempt=1, remaining=None) is not None:
            hedges.start()
        purse.succeeded()
    assert purse.spent <= 100
