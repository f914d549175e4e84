"""Which demand goes where, so that nothing is handed out twice. Pure, and the same answer for the same question."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

MAX_STEPS = 20_000
"""Tries of one demand in one place, until the search gives up. A graph that fits easily takes one a demand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    group: str
    """Those of one group are spread over as many places as can be."""
    size: int = 0
    is_exclusive: bool = False
    """It shares its place with nobody."""
    among: tuple[int, ...]
    """The places that it may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    room: int
    is_idle: bool = True
    """Nobody foreign is there."""


class _State:
    """What each place still has, and who is in it."""

    def __init__(
        self, demands: Sequence[Demand], places: Sequence[Place], settled: Sequence[tuple[Demand, int]]
    ) -> None:
        self._places = places
        self._room = [place.room for place in places]
        self._inside: list[list[Demand]] = [[] for _ in places]
        self._wanted = [frozenset(i for i, each in enumerate(demands) if at in each.among) for at in range(len(places))]
        for demand, at in settled:
            self.put(demand, at)

    def put(self, demand: Demand, at: int) -> None:
        self._room[at] -= demand.size
        self._inside[at].append(demand)

    def take_back(self, at: int) -> None:
        self._room[at] += self._inside[at].pop().size

    def choices(self, demand: Demand) -> Iterator[int]:
        """Where it may go, best first; of places that are alike to all demands, one."""
        possible = (at for at in demand.among if self._may_take(demand, at))
        best: dict[Hashable, int] = {}
        for at in sorted(possible, key=self._preference(demand)):
            best.setdefault(self._likeness(at), at)
        return iter(best.values())

    def _may_take(self, demand: Demand, at: int) -> bool:
        inside = self._inside[at]
        if demand.is_exclusive and (inside or not self._places[at].is_idle):
            return False
        return demand.size <= self._room[at] and not any(each.is_exclusive for each in inside)

    def _preference(self, demand: Demand) -> Callable[[int], tuple[int, int, int]]:
        """Spread first, then the best fit; what has no size goes where fewest are."""

        def rank(at: int) -> tuple[int, int, int]:
            inside = self._inside[at]
            siblings = sum(each.group == demand.group for each in inside)
            return siblings, self._room[at] if demand.size else len(inside), at

        return rank

    def _likeness(self, at: int) -> Hashable:
        inside = self._inside[at]
        is_taken = any(each.is_exclusive for each in inside)
        return self._room[at], self._places[at].is_idle, bool(inside), is_taken, self._wanted[at]


def fit(
    demands: Sequence[Demand], places: Sequence[Place], settled: Sequence[tuple[Demand, int]] = ()
) -> list[int | None]:
    """The place of each demand; None for those that found none. Those who are `settled` stay where they are.

    It goes through the demands from the hardest to the easiest, each into the place that it likes best, and goes back on its
    choices where that leaves one without a place. Only if that leads nowhere is anybody left out.
    """
    order = sorted(range(len(demands)), key=lambda at: _hardness(demands[at]))
    ordered = [demands[at] for at in order]
    found = _search(ordered, _State(ordered, places, settled)) or _settle(ordered, _State(ordered, places, settled))
    return [place for _, place in sorted(zip(order, found, strict=True))]


def _hardness(demand: Demand) -> tuple[int, bool, int]:
    return len(demand.among), not demand.is_exclusive, -demand.size


def _search(demands: Sequence[Demand], state: _State) -> list[int | None] | None:
    """Depth first; None where no arrangement holds all of them, or none was found in time."""
    chosen: list[int] = []
    tried: list[Iterator[int]] = []
    for _ in range(MAX_STEPS + len(demands)):
        if len(chosen) == len(demands):
            return [*chosen]
        if len(tried) == len(chosen):
            tried.append(state.choices(demands[len(chosen)]))
        at = next(tried[-1], None)
        if at is not None:
            state.put(demands[len(chosen)], at)
            chosen.append(at)
        elif chosen:
            tried.pop()
            state.take_back(chosen.pop())
        else:
            return None
    return None


def _settle(demands: Sequence[Demand], state: _State) -> list[int | None]:
    """Each into the place that it likes best of those left; some stay outside."""
    chosen: list[int | None] = []
    for demand in demands:
        at = next(state.choices(demand), None)
        if at is not None:
            state.put(demand, at)
        chosen.append(at)
    return chosen
