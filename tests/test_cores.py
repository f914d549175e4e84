"""Cores and threads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolkit.launcher.cores import share_cores, show_cores
from toolkit.launcher.devices import Machine


def machine(count: int, quota: float | None = None) -> Machine:
    return Machine(cores=tuple(range(count)), quota=quota)


def test_who_asks_gets_cores_of_its_own_and_the_others_the_rest() -> None:
    shares = share_cores([3, None, 2, None], machine(8))
    assert [each.cores for each in shares] == [(0, 1, 2), (5, 6, 7), (3, 4), (5, 6, 7)]
    assert [each.threads for each in shares] == [3, 1, 2, 1]
    assert shares[1].why == "its share of 3 cores"


def test_where_nobody_asks_nobody_is_bound() -> None:
    shares = share_cores([None] * 3, machine(8))
    assert [(each.cores, each.threads) for each in shares] == [((), 2)] * 3


def test_where_all_ask_for_too_many_nobody_is_bound_and_it_is_said() -> None:
    first, second, third = share_cores([2, 2, None], machine(3))
    assert (first.cores, second.cores, third.cores) == ((), (), ())
    assert (first.threads, third.threads) == (2, 3)
    assert first.why == "resources.cpus, though 4 are asked for and there are 3"


def test_a_cgroups_quota_bounds_the_threads_of_many_cores() -> None:
    assert share_cores([None], machine(64, quota=2.0))[0].threads == 2
    assert share_cores([None], machine(64, quota=0.5))[0].threads == 1


def test_cores_that_others_run_on_are_not_given_again() -> None:
    assert share_cores([2], machine(4), taken=(0, 1))[0].cores == (2, 3)


def test_part_of_a_core_takes_a_whole_one() -> None:
    share = share_cores([1.5], machine(4))[0]
    assert (share.cores, share.threads) == ((0, 1), 1)


@given(
    st.lists(st.none() | st.floats(0.1, 8), min_size=1, max_size=8),
    st.sets(st.integers(0, 30), min_size=1, max_size=16),
    st.none() | st.floats(0.1, 20),
)
def test_the_cores_of_those_who_ask_are_theirs_alone(
    asked: list[float | None], cores: set[int], quota: float | None
) -> None:
    there = Machine(cores=tuple(sorted(cores)), quota=quota)
    shares = share_cores(asked, there)
    own = [core for share, each in zip(shares, asked, strict=True) if each for core in share.cores]
    rest = {core for share, each in zip(shares, asked, strict=True) if not each for core in share.cores}
    assert len(own) == len(set(own))
    assert not rest & set(own)
    assert (rest | set(own)) <= cores
    assert all(share.threads >= 1 for share in shares)
    assert all(not share.cores or share.threads <= len(share.cores) for share in shares)


def test_cores_are_shown_as_ranges() -> None:
    assert show_cores((0, 1, 2, 3, 8, 10, 11)) == "0-3,8,10-11"
