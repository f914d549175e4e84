"""Retries: what is tried again, when, and how few in all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

import pytest

from toolkit.errors import Code, ServiceError
from toolkit.policy.retry import BudgetOptions, Failure, RetryBudget, RetryOptions, RetryPolicy
from toolkit.testing import FakeClock

GONE = Failure(code=Code.UNAVAILABLE, idempotent=True)


def policy(*, random: float = 0.5, clock: FakeClock | None = None) -> RetryPolicy:
    return RetryPolicy(RetryBudget(BudgetOptions(), clock or FakeClock()), RetryOptions(), lambda: random)


def test_an_idempotent_call_that_met_nobody_is_tried_again() -> None:
    assert policy().next_delay(GONE, attempt=1, remaining=None) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "failure",
    [
        Failure(code=Code.INTERNAL, idempotent=True),
        Failure(code=Code.RESOURCE_EXHAUSTED, idempotent=True, pushback=0.1),
        Failure(code=Code.DEADLINE_EXCEEDED, idempotent=True),
        Failure(code=Code.CANCELLED, idempotent=True),
        Failure(code=Code.UNAVAILABLE, idempotent=False),
        Failure(code=Code.UNAVAILABLE, idempotent=True, relayed=True),
        Failure(code=Code.UNAVAILABLE, idempotent=False, unseen=True, relayed=True),
        Failure(code=Code.UNAVAILABLE, idempotent=True, replied=True),
        Failure(code=Code.UNAVAILABLE, idempotent=False, unseen=True, replied=True),
        Failure(code=Code.UNAVAILABLE, idempotent=True, pushback=-1.0),
    ],
    ids=str,
)
def test_what_is_not_tried_again_costs_nothing(failure: Failure) -> None:
    retries = policy()
    assert retries.next_delay(failure, attempt=1, remaining=10.0) is None
    assert (retries.budget.spent, retries.budget.refused) == (0, 0)


def test_a_request_that_no_handler_saw_is_sent_again_whatever_the_method() -> None:
    unseen = Failure(code=Code.UNAVAILABLE, idempotent=False, unseen=True)
    assert policy().next_delay(unseen, attempt=1, remaining=None) is not None


def test_the_wait_grows_and_is_anything_up_to_its_bound() -> None:
    longest = [policy(random=0.999999).next_delay(GONE, attempt=n, remaining=None) for n in (1, 2, 3)]
    assert longest == pytest.approx([0.02, 0.04, 0.08], rel=1e-3)
    assert policy(random=0.0).next_delay(GONE, attempt=3, remaining=None) == 0.0


def test_the_wait_has_a_bound() -> None:
    many = RetryPolicy(RetryBudget(BudgetOptions(), FakeClock()), RetryOptions(attempts=99), lambda: 0.999999)
    assert many.next_delay(GONE, attempt=98, remaining=None) == pytest.approx(1.0, rel=1e-3)


def test_the_last_attempt_is_the_last() -> None:
    assert policy().next_delay(GONE, attempt=3, remaining=None) is not None
    assert policy().next_delay(GONE, attempt=4, remaining=None) is None


def test_a_retry_starts_before_the_deadline() -> None:
    delay = policy(random=0.999999).next_delay(GONE, attempt=1, remaining=0.005)
    assert delay is not None
    assert 0 < delay < 0.005
    assert policy().next_delay(GONE, attempt=1, remaining=0.0) is None
    assert policy().next_delay(GONE, attempt=1, remaining=-1.0) is None


def test_the_callee_says_when_to_come_back() -> None:
    pushed = Failure(code=Code.UNAVAILABLE, idempotent=True, pushback=0.3)
    assert policy().next_delay(pushed, attempt=1, remaining=1.0) == 0.3
    assert policy().next_delay(pushed, attempt=1, remaining=0.3) is None, "then it is too late"


def test_a_callee_that_asks_for_a_longer_pause_than_anybody_waits_gets_no_retry() -> None:
    retries = policy()
    days = Failure(code=Code.UNAVAILABLE, idempotent=True, pushback=259_200.0)
    assert retries.next_delay(days, attempt=1, remaining=None) is None
    assert retries.next_delay(days, attempt=1, remaining=1e9) is None
    assert retries.budget.spent == 0
    assert retries.next_delay(replace(days, pushback=30.0), attempt=1, remaining=None) == 30.0


def test_a_new_budget_holds_its_reserve() -> None:
    budget = RetryBudget(BudgetOptions(reserve=3), FakeClock())
    assert [budget.withdraw() for _ in range(5)] == [True, True, True, False, False]
    assert (budget.spent, budget.refused) == (3, 2)


def test_time_refills_the_reserve_and_no_more() -> None:
    clock = FakeClock()
    budget = RetryBudget(BudgetOptions(reserve=2, per_second=1.0), clock)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    clock.advance(1.0)
    assert [budget.withdraw() for _ in range(2)] == [True, False]
    clock.advance(1000.0)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


def test_ten_successes_pay_for_a_retry_up_to_the_burst() -> None:
    budget = RetryBudget(BudgetOptions(reserve=0, burst=2, ratio=0.125), FakeClock())
    for _ in range(7):
        budget.succeeded()
    assert not budget.withdraw()
    budget.succeeded()
    assert budget.withdraw()
    for _ in range(1000):
        budget.succeeded()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]


def test_what_is_to_be_kept_stays() -> None:
    budget = RetryBudget(BudgetOptions(reserve=10), FakeClock())
    assert not budget.withdraw(keep=10)
    assert budget.withdraw(keep=9)
    assert not budget.withdraw(keep=9)
    assert budget.withdraw()


@pytest.mark.parametrize("seed", range(20))
def test_no_history_spends_more_than_the_promise(seed: int) -> None:
    random, clock, options = Random(seed), FakeClock(), BudgetOptions()
    budget, successes = RetryBudget(options, clock), 0
    for _ in range(3000):
        step = random.random()
        if step < 0.3:
            clock.advance(random.random() * 0.5)
        elif step < 0.6:
            budget.succeeded()
            successes += 1
        else:
            budget.withdraw()
        assert budget.spent <= options.reserve + options.per_second * clock.now + options.ratio * successes + 1e-6


@dataclass
class Layer:
    """One service of a chain: it passes a call on through its handle, with retries, as a client does."""

    clock: FakeClock
    below: Layer | None = None
    says_where: bool = True
    """Its errors carry their path; else it is a foreign service."""
    fails: float = 1.0
    random: Random = field(default_factory=lambda: Random(7))
    handled: int = 0

    def __post_init__(self) -> None:
        self.retries = RetryPolicy(RetryBudget(BudgetOptions(), self.clock), RetryOptions(), self.random.random)

    def handle(self, name: str) -> None:
        self.handled += 1
        if self.below is None:
            if self.random.random() < self.fails:
                raise ServiceError(Code.UNAVAILABLE, "no")
            return
        attempt = 0
        while True:
            attempt += 1
            try:
                self.below.handle(name + "x")
            except ServiceError as error:
                failure = Failure(code=error.code, idempotent=True, relayed=bool(error.path))
                if self.retries.next_delay(failure, attempt=attempt, remaining=1.0) is None:
                    path = (name, *error.path) if self.says_where else ()
                    raise ServiceError(error.code, error.message, path=path) from None
            else:
                self.retries.budget.succeeded()
                return


def leaf_attempts_per_call(*, calls: int, says_where: bool = True, fails: float = 1.0, healthy: int = 0) -> float:
    """Attempts at the leaf of client → a → b → c → leaf, at 50 calls a second, once it fails."""
    clock = FakeClock()
    leaf = Layer(clock, fails=0.0)
    client = leaf
    for _ in range(4):
        client = Layer(clock, below=client, says_where=says_where)
    for _ in range(healthy):
        clock.advance(0.02)
        client.handle("x")
    leaf.handled, leaf.fails = 0, fails
    for _ in range(calls):
        clock.advance(0.02)
        try:
            client.handle("x")
        except ServiceError:
            continue
    return leaf.handled / calls


@pytest.mark.parametrize("calls", [60, 500, 3000])
def test_a_leaf_that_always_fails_gets_a_fifth_more_calls_at_most(calls: int) -> None:
    assert leaf_attempts_per_call(calls=calls) <= 1.2


def test_what_was_saved_in_good_times_does_not_break_that() -> None:
    assert leaf_attempts_per_call(calls=500, healthy=5000) <= 1.2


@pytest.mark.parametrize("fails", [0.02, 0.3, 0.7])
def test_nor_does_a_leaf_that_fails_now_and_then(fails: float) -> None:
    assert leaf_attempts_per_call(calls=3000, fails=fails) <= 1.2


def test_the_budget_alone_holds_it_where_foreign_services_hide_the_path() -> None:
    assert leaf_attempts_per_call(calls=3000, says_where=False) <= 1.2


def test_now_and_then_a_failure_is_cured() -> None:
    clock = FakeClock()
    leaf = Layer(clock, fails=0.05)
    client = Layer(clock, below=leaf)
    failed = 0
    for _ in range(2000):
        clock.advance(0.02)
        try:
            client.handle("x")
        except ServiceError:
            failed += 1
    assert failed == 0
