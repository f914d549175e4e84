"""Points in time, on a clock that is handed in."""

from __future__ import annotations

import pytest

from toolkit.deadline import Deadline, earliest
from toolkit.testing import FakeClock


def test_what_remains_is_counted_on_the_deadline_s_own_clock() -> None:
    clock = FakeClock(100.0)
    deadline = Deadline.after(5.0, clock)
    assert (deadline.at, deadline.remaining()) == (105.0, 5.0)
    clock.advance(7.0)
    assert deadline.remaining() == -2.0


@pytest.mark.parametrize(("timeout", "is_expired"), [(-1.0, True), (0.0, True), (0.001, False)])
def test_a_deadline_has_expired_from_its_very_moment_on(timeout: float, is_expired: bool) -> None:
    assert Deadline.after(timeout, FakeClock()).is_expired() is is_expired


def test_deadlines_are_equal_when_their_moments_are() -> None:
    assert Deadline(5.0, FakeClock()) == Deadline(5.0, FakeClock(3.0))
    assert Deadline(5.0) != Deadline(6.0)


def test_the_earliest_is_the_first_to_come() -> None:
    soon, late = Deadline(1.0), Deadline(2.0)
    assert earliest(late, None, soon) is soon
    assert earliest(None, late) is late
    assert earliest(None) is None
    assert earliest() is None
    assert earliest(soon, Deadline(1.0)) is soon


def test_the_clock_is_no_part_of_what_is_shown() -> None:
    assert repr(Deadline(5.0)) == "Deadline(at=5.0)"
