"""Which demand goes where: held against an exhaustive search, over all small cases that hypothesis thinks of."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.launcher.fit import Demand, Place, fit

PLACES = st.lists(st.builds(Place, room=st.integers(0, 12), is_idle=st.booleans()), min_size=1, max_size=3)


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[Demand], list[Place]]:
    places = draw(PLACES)
    among = st.sets(st.integers(0, len(places) - 1), min_size=1).map(lambda found: tuple(sorted(found)))
    demand = st.builds(
        Demand, group=st.sampled_from("abc"), size=st.integers(0, 12), is_exclusive=st.booleans(), among=among
    )
    return draw(st.lists(demand, max_size=5)), places


def holds(demands: list[Demand], places: list[Place], chosen: list[int | None]) -> bool:
    """Nothing is handed out twice."""
    for at, place in enumerate(places):
        inside = [demand for demand, where in zip(demands, chosen, strict=True) if where == at]
        is_alone = len(inside) == 1 and place.is_idle
        if sum(each.size for each in inside) > place.room:
            return False
        if any(each.is_exclusive for each in inside) and not is_alone:
            return False
    return all(where is None or where in demand.among for demand, where in zip(demands, chosen, strict=True))


@settings(max_examples=400, deadline=None)
@given(questions())
def test_nothing_is_handed_out_twice(question: tuple[list[Demand], list[Place]]) -> None:
    demands, places = question
    assert holds(demands, places, fit(demands, places))


@settings(max_examples=400, deadline=None)
@given(questions())
def test_somebody_is_left_out_only_where_no_arrangement_holds_all(question: tuple[list[Demand], list[Place]]) -> None:
    demands, places = question
    is_possible = any(holds(demands, places, list(each)) for each in product(*(demand.among for demand in demands)))
    assert (None not in fit(demands, places)) == is_possible


@settings(max_examples=200, deadline=None)
@given(questions())
def test_who_is_left_out_finds_no_place_beside_the_others(question: tuple[list[Demand], list[Place]]) -> None:
    demands, places = question
    chosen = fit(demands, places)
    for out in (at for at, where in enumerate(chosen) if where is None):
        for where in demands[out].among:
            assert not holds(demands, places, [*chosen[:out], where, *chosen[out + 1 :]])


@settings(max_examples=200, deadline=None)
@given(questions())
def test_the_same_question_has_the_same_answer(question: tuple[list[Demand], list[Place]]) -> None:
    assert fit(*question) == fit(*question)


@settings(max_examples=200, deadline=None)
@given(questions(), st.integers(0, 4))
def test_the_settled_stay_and_count(question: tuple[list[Demand], list[Place]], kept: int) -> None:
    demands, places = question
    chosen = fit(demands, places)
    settled = [(each, at) for each, at in zip(demands, chosen, strict=True) if at is not None][:kept]
    more = fit(demands, places, settled)
    assert holds(demands + [each for each, _ in settled], places, more + [at for _, at in settled])


def test_replicas_of_a_deployment_are_spread_first() -> None:
    one = Demand(group="a", size=2, among=(0, 1, 2))
    assert sorted(at for at in fit([one] * 3, [Place(room=10)] * 3) if at is not None) == [0, 1, 2]


def test_then_the_best_fit_is_taken() -> None:
    places = [Place(room=20), Place(room=5), Place(room=9)]
    assert fit([Demand(group="a", size=4, among=(0, 1, 2))], places) == [1]


def test_what_has_no_size_goes_where_fewest_are() -> None:
    tiny = Demand(group="b", among=(0, 1))
    assert fit([Demand(group="a", size=9, among=(0,)), tiny], [Place(room=9), Place(room=30)]) == [0, 1]


def test_a_large_graph_is_fitted_without_a_search() -> None:
    demands = [Demand(group=f"d{at // 256}", among=tuple(range(8))) for at in range(2048)]
    assert None not in fit(demands, [Place(room=1)] * 8)


def test_a_question_without_an_answer_ends() -> None:
    """As many GPUs, and as few that fit, that to try all ways would take years."""
    demands = [Demand(group=str(at), size=5 + at % 3, among=tuple(range(16))) for at in range(48)]
    assert None in fit(demands, [Place(room=17)] * 15 + [Place(room=2)])
