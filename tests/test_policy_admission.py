"""Who runs, who waits, who is sent away: histories, and overload in a simulated second."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random

import pytest

from toolkit.policy.admission import ADMIT, Admission, AdmissionOptions, Reason, Refuse, Ticket
from toolkit.testing import FakeClock


def door(limit: int = 2, queue: int | None = 3, clock: FakeClock | None = None) -> Admission:
    return Admission(AdmissionOptions(max_concurrency=limit, max_queue=queue), clock or FakeClock())


def queued(admission: Admission, remaining: float | None = None) -> Ticket:
    decision = admission.enter(remaining)
    assert isinstance(decision, Ticket)
    return decision


def busy(
    limit: int = 1, *, seconds: float = 1.0, queue: int | None = None, clock: FakeClock | None = None
) -> Admission:
    """A door that has learned how long calls take, and where as many run as may."""
    admission = door(limit, queue, clock)
    admission.enter()
    admission.release(seconds)
    for _ in range(limit):
        assert admission.enter() is ADMIT
    return admission


def test_calls_run_up_to_the_limit_then_wait_then_are_refused() -> None:
    admission = door(limit=2, queue=3)
    assert [admission.enter() for _ in range(2)] == [ADMIT, ADMIT]
    assert all(isinstance(admission.enter(), Ticket) for _ in range(3))
    refused = admission.enter()
    assert isinstance(refused, Refuse)
    assert refused.reason is Reason.FULL
    assert (admission.running, admission.queued, admission.admitted, admission.full) == (2, 3, 2, 1)


def test_a_call_that_ends_lets_the_first_in_the_queue_in() -> None:
    admission = door(limit=1)
    admission.enter()
    first, second = queued(admission), queued(admission)
    assert admission.release(0.1) == [first]
    assert first.outcome is ADMIT
    assert second.outcome is None
    assert admission.release(0.1) == [second]
    assert admission.release(0.1) == ()
    assert (admission.running, admission.queued, admission.admitted) == (0, 0, 3)


def test_without_a_queue_the_next_is_refused() -> None:
    """As a bulkhead of one handle."""
    admission = door(limit=1, queue=0)
    assert admission.enter() is ADMIT
    assert isinstance(admission.enter(), Refuse)


@pytest.mark.parametrize(("limit", "places"), [(1, 16), (8, 16), (64, 128)])
def test_the_queue_has_a_bound_of_its_own(limit: int, places: int) -> None:
    admission = door(limit, queue=None)
    decisions = [admission.enter() for _ in range(limit + places + 1)]
    assert [isinstance(each, Ticket) for each in decisions] == [False] * limit + [True] * places + [False]


def test_a_refused_call_hears_when_a_place_should_be_free() -> None:
    admission = busy(limit=2, seconds=1.0, queue=3)
    for _ in range(3):
        queued(admission)
    assert admission.enter() == Refuse(Reason.FULL, 2.0)


def test_it_is_not_told_to_come_back_at_once() -> None:
    admission = door(limit=1, queue=0)
    admission.enter()
    refused = admission.enter()
    assert isinstance(refused, Refuse)
    assert refused.retry_after == 0.05


def test_nobody_waits_for_more_than_half_of_its_time() -> None:
    admission = busy(seconds=1.0)
    assert admission.enter(1.9) == Refuse(Reason.HOPELESS, None)
    queued(admission, 2.1)
    assert admission.enter(3.9) == Refuse(Reason.HOPELESS, None)
    queued(admission, 4.1)
    assert (admission.queued, admission.hopeless) == (2, 2)


def test_a_call_that_even_the_shortest_would_outlast_is_refused() -> None:
    admission = door(limit=8)
    for seconds in (5.0, 1.0, 5.0):
        admission.enter()
        admission.release(seconds)
    admission.enter()
    assert admission.enter(0.9) == Refuse(Reason.HOPELESS, None)
    assert admission.enter(1.5) is ADMIT, "it may be a short one"


def test_where_nothing_runs_a_call_may_try() -> None:
    """Else a service that was slow once would refuse for ever."""
    admission = door()
    admission.enter()
    admission.release(100.0)
    assert admission.enter(1.0) is ADMIT
    admission.release(0.01)
    assert admission.enter(1.0) is ADMIT


def test_a_turn_that_comes_too_late_goes_to_the_next() -> None:
    clock = FakeClock()
    admission = busy(seconds=1.0, clock=clock)
    late, next_one = queued(admission, 3.0), queued(admission, 100.0)
    clock.advance(2.5)
    assert admission.release(1.0) == [late, next_one]
    assert late.outcome == Refuse(Reason.HOPELESS, None)
    assert next_one.outcome is ADMIT
    assert (admission.running, admission.hopeless) == (1, 1)


def test_when_all_turns_come_too_late_nothing_runs() -> None:
    clock = FakeClock()
    admission = busy(seconds=1.0, clock=clock)
    late = queued(admission, 3.0)
    clock.advance(2.5)
    assert admission.release(1.0) == [late]
    assert (admission.running, admission.queued) == (0, 0)


def test_who_gives_up_leaves_the_queue_and_is_counted() -> None:
    clock = FakeClock()
    admission = door(limit=1, clock=clock)
    admission.enter()
    patient, expired, cancelled = queued(admission), queued(admission, 1.0), queued(admission, 9.0)
    clock.advance(1.0)
    assert admission.leave(expired) == ()
    assert admission.leave(cancelled) == ()
    assert (admission.queued, admission.expired, admission.cancelled) == (1, 1, 1)
    assert admission.release(0.1) == [patient]


def test_who_gives_up_just_after_its_turn_came_passes_it_on() -> None:
    admission = door(limit=1)
    admission.enter()
    first, second = queued(admission), queued(admission)
    admission.release(0.1)
    assert admission.leave(first) == [second]
    assert second.outcome is ADMIT
    assert admission.leave(second) == ()
    assert admission.running == 0


def test_who_was_refused_in_the_queue_has_nothing_to_give_back() -> None:
    clock = FakeClock()
    admission = busy(seconds=1.0, clock=clock)
    late = queued(admission, 3.0)
    clock.advance(2.5)
    admission.release(1.0)
    assert admission.leave(late) == ()
    assert admission.running == 0


def test_a_call_cut_short_teaches_nothing() -> None:
    admission = busy(seconds=1.0)
    admission.release(None)
    assert admission.seconds == 1.0


def release_late(admission: Admission, times: int) -> None:
    for _ in range(times):
        admission.enter()
        admission.release(None, is_late=True)


def test_while_most_calls_end_late_fewer_are_let_in() -> None:
    admission = door(limit=8, queue=9)
    release_late(admission, 13)
    assert admission.limit == 8, "it may be chance"
    release_late(admission, 100)
    assert admission.limit == 1
    assert admission.enter() is ADMIT
    assert isinstance(admission.enter(), Ticket)


def test_calls_that_end_in_time_bring_the_limit_back() -> None:
    admission = door(limit=8)
    release_late(admission, 100)
    for _ in range(150):
        assert admission.enter() is ADMIT
        admission.release(0.01)
    assert admission.limit == 8


def test_as_long_as_most_end_in_time_the_limit_stays() -> None:
    admission = door(limit=8)
    for _ in range(100):
        release_late(admission, 1)
        for _ in range(2):
            admission.enter()
            admission.release(0.01)
    assert admission.limit == 8


def test_a_limit_that_grows_takes_from_the_queue_first() -> None:
    admission = door(limit=3, queue=9)
    release_late(admission, 100)
    admission.enter()
    waiting = [queued(admission) for _ in range(9)]
    for _ in range(3):
        admission.release(0.01)
    assert admission.limit > 1
    assert [each.outcome is ADMIT for each in waiting] == [True] * 4 + [False] * 5
    assert admission.running == 2


def test_a_limit_that_shrinks_takes_nobody_out() -> None:
    admission = door(limit=60)
    for _ in range(60):
        admission.enter()
    for _ in range(40):
        admission.release(None, is_late=True)
    assert admission.limit < 5
    assert admission.running == 20
    waiting = queued(admission)
    assert [admission.release(0.01) for _ in range(10)] == [[]] * 10
    assert waiting.outcome is None


@pytest.mark.parametrize("seed", range(10))
def test_no_history_breaks_the_bounds(seed: int) -> None:
    random, clock = Random(seed), FakeClock()
    admission = door(limit=3, queue=4, clock=clock)
    running, waiting = 0, list[Ticket]()
    entered = 0

    def settle(decided: object) -> None:
        nonlocal running
        for ticket in list(waiting):
            if ticket.outcome is not None:
                waiting.remove(ticket)
                running += ticket.outcome is ADMIT

    for _ in range(3000):
        clock.advance(random.random() * 0.1)
        step = random.random()
        if step < 0.5:
            entered += 1
            decision = admission.enter(random.choice([None, random.random() * 3]))
            running += decision is ADMIT
            if isinstance(decision, Ticket):
                waiting.append(decision)
        elif step < 0.9 and running:
            running -= 1
            settle(admission.release(random.choice([None, random.random()])))
        elif waiting:
            settle(admission.leave(waiting.pop(random.randrange(len(waiting)))))
        assert (admission.running, admission.queued) == (running, len(waiting))
        assert running <= 3
        assert len(waiting) <= 4
        assert running == 3 or not waiting, "nobody waits beside a free place"
    out = admission.admitted + admission.full + admission.hopeless + admission.expired + admission.cancelled
    assert out + admission.queued == entered


Duration = Callable[[Random], float]
CONSTANT: Duration = lambda random: 0.02  # noqa: E731 - a table of them
VARIED: Duration = lambda random: random.expovariate(1 / 0.02)  # noqa: E731


@dataclass
class Load:
    """A service behind its door, and open-loop callers who wait `timeout` seconds, on a clock of their own."""

    limit: int
    duration: Duration
    timeout: float
    random: Random = field(default_factory=lambda: Random(5))
    good: int = 0
    """Calls that ended before their deadline."""
    latencies: list[float] = field(default_factory=list)
    """Of the good ones."""
    refusals: list[float] = field(default_factory=list)
    """Seconds that each refused caller waited for the refusal."""
    longest_queue: int = 0

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.admission = Admission(AdmissionOptions(max_concurrency=self.limit), self.clock)
        self._order = count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    @property
    def capacity(self) -> float:
        return self.limit / 0.02

    def run(self, *, rate: float, seconds: float) -> None:
        self._arrive(1 / rate, self.clock.now + seconds)
        while self._events:
            self.clock.now, _, act = heapq.heappop(self._events)
            act()

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _arrive(self, gap: float, until: float) -> None:
        now = self.clock.now
        if now >= until:
            return
        self._at(now + self.random.expovariate(1 / gap), lambda: self._arrive(gap, until))
        decision = self.admission.enter(self.timeout)
        self.longest_queue = max(self.longest_queue, self.admission.queued)
        if isinstance(decision, Ticket):
            decision.waiter = now
            self._at(now + self.timeout, lambda: self._give_up(decision))
        elif decision is ADMIT:
            self._work(now)
        else:
            self.refusals.append(0.0)

    def _give_up(self, ticket: Ticket) -> None:
        if ticket.outcome is None:
            self.admission.leave(ticket)

    def _work(self, arrived: float) -> None:
        seconds = self.duration(self.random)
        self._at(self.clock.now + seconds, lambda: self._end(arrived, seconds))

    def _end(self, arrived: float, seconds: float) -> None:
        took = self.clock.now - arrived
        if took <= self.timeout:
            self.good += 1
            self.latencies.append(took)
        for ticket in self.admission.release(seconds):
            if ticket.outcome is ADMIT:
                self._work(ticket.waiter)
            else:
                self.refusals.append(self.clock.now - ticket.waiter)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(part * len(values))]


@pytest.mark.parametrize("overload", [2, 5, 10])
@pytest.mark.parametrize("limit", [1, 8])
@pytest.mark.parametrize("duration", [CONSTANT, VARIED], ids=["constant", "varied"])
@pytest.mark.parametrize("timeout", [0.2, 3.0])
def test_overload_costs_a_tenth_of_what_gets_done_at_most(
    overload: int, limit: int, duration: Duration, timeout: float
) -> None:
    load = Load(limit, duration, timeout)
    seconds = 100 / limit
    load.run(rate=overload * load.capacity, seconds=seconds)
    assert load.good >= 0.9 * load.capacity * seconds
    assert percentile(load.refusals, 0.99) <= 0.01
    assert load.longest_queue <= max(16, 2 * limit)


@pytest.mark.parametrize("limit", [4, 16])
def test_who_gets_in_is_nearly_as_soon_done_as_in_good_times(limit: int) -> None:
    calm, mad = Load(limit, CONSTANT, 3.0), Load(limit, CONSTANT, 3.0)
    calm.run(rate=0.8 * calm.capacity, seconds=20)
    mad.run(rate=10 * mad.capacity, seconds=5)
    assert percentile(mad.latencies, 0.99) <= 3 * percentile(calm.latencies, 0.99)


def test_after_the_overload_nobody_is_refused() -> None:
    load = Load(4, CONSTANT, 1.0)
    load.run(rate=10 * load.capacity, seconds=5)
    refused = len(load.refusals)
    load.run(rate=0.5 * load.capacity, seconds=5)
    assert len(load.refusals) == refused


def shared_processor(
    limit: int, overload: float, timeout: float, *, work: float = 0.02, seconds: float = 20.0
) -> float:
    """Calls that end in time, as a part of those that could, where all that run share one processor and each is cut at its
    deadline: what a limit much too high does.
    """
    random, clock = Random(1), FakeClock()
    admission = Admission(AdmissionOptions(max_concurrency=limit), clock)
    running: dict[Ticket, float] = {}
    """What runs, as tickets, and the work left of it."""
    waiting: list[Ticket] = []
    good, next_arrival = 0, 0.0

    def settle(decided: Iterable[Ticket]) -> None:
        for ticket in decided:
            waiting.remove(ticket)
            if ticket.outcome is ADMIT:
                running[ticket] = work

    while clock.now < seconds:
        shortest = min(running, key=running.__getitem__, default=None)
        ends = inf if shortest is None else clock.now + running[shortest] * len(running)
        cut = min((each.expires_at for each in running), default=inf)
        then = min(ends, cut, next_arrival)
        for each in running:
            running[each] -= (then - clock.now) / len(running)
        clock.now = then
        for ticket in [each for each in waiting if each.expires_at <= then]:
            waiting.remove(ticket)
            admission.leave(ticket)
        if then == next_arrival:
            next_arrival += random.expovariate(overload / work)
            decision = admission.enter(timeout)
            if decision is ADMIT:
                running[Ticket(then + timeout)] = work
            elif isinstance(decision, Ticket):
                waiting.append(decision)
        elif then == ends and shortest is not None:
            del running[shortest]
            good += 1
            settle(admission.release(then - (shortest.expires_at - timeout)))
        else:
            del running[min(running, key=lambda each: each.expires_at)]
            settle(admission.release(None, is_late=True))
    return good * work / seconds


@pytest.mark.parametrize("overload", [2, 5, 10])
@pytest.mark.parametrize("timeout", [0.5, 1.0, 3.0])
def test_a_limit_much_too_high_is_found_out(overload: float, timeout: float) -> None:
    """Without that, one in a hundred ends in time here."""
    assert shared_processor(64, overload, timeout) >= 0.75
    assert shared_processor(8, overload, timeout) >= 0.9, "and a good one does better"


def test_what_one_method_takes_says_nothing_about_another() -> None:
    """Else a quick one would be refused for good beside one that takes long, and nothing could be learned of it."""
    admission = Admission(AdmissionOptions(max_concurrency=2))
    for _ in range(500):
        admission.enter(60.0, "long")
        admission.release(10.0, kind="long")
    admission.enter(60.0, "long")
    assert admission.enter(1.0, "long") == Refuse(Reason.HOPELESS, None)
    assert admission.enter(1.0, "quick") is ADMIT
