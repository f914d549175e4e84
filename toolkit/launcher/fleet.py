"""What the supervisor knows of its replicas: those of a unit, those that replace them, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from toolkit.launcher.events import Load
from toolkit.launcher.lifecycle import State
from toolkit.launcher.manifest import Graph, Unit
from toolkit.launcher.output import Row
from toolkit.launcher.restarts import Restarts
from toolkit.metrics import Sample
from toolkit.spec import ReplicaSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One replica to start."""

    name: str
    """Unique for good: a replica that takes the place of `gpt2` is called `gpt2#2`."""
    unit: str
    """What it is one of."""
    spec: ReplicaSpec
    env: Mapping[str, str]

    @property
    def specs(self) -> tuple[ReplicaSpec, ...]:
        """Of all that run in it."""
        return (self.spec, *self.spec.companions)


Addresses = Mapping[str, tuple[str, ...]]
"""Deployment → where its replicas listen."""


class Starts(Protocol):
    """Where replicas come from that join those that serve."""

    def plan(self, counts: Mapping[str, int]) -> None:
        """Find places for so many replicas of each of these units. Raises PlacementError where there are none."""

    def adopt(self, graph: Graph, counts: Mapping[str, int]) -> list[str]:
        """From now on replicas are those of this graph: of each unit so many. Returns the units whose replicas are others
        than before. Raises PlacementError where there are no places.
        """
        ...

    def another(self, unit: str, index: int, number: int, addresses: Addresses) -> Launch:
        """The `number`-th replica in the place `index` of a unit, where the others are at `addresses`."""
        ...


_PENDING = Row(state=State.PENDING.value)
_SERVED = (State.READY, State.HUNG, State.DRAINING)


@dataclass(eq=False, slots=True)
class Replica:
    """One process."""

    launch: Launch
    generation: int = 0
    state: State = State.PENDING
    row: Row = _PENDING
    pid: int | None = None
    is_running: bool = False
    started_at: float = 0.0
    ready_at: float | None = None
    heard_at: float = 0.0
    """When its event loop was last known to turn."""
    load: Load | None = None
    files: frozenset[str] = frozenset()
    """What it is made of, where that is asked for; of one that fails, what it has failed in too."""
    samples: Sequence[Sample] = ()
    """What it has measured, where that is asked for."""
    has_served: bool = False
    """It was ready when it was asked to stop: calls may have been lost if it had to be killed."""
    kill_at: float | None = None
    """It was asked to stop; at this time it is killed."""
    is_killed: bool = False

    @property
    def name(self) -> str:
        return self.launch.name

    @property
    def unit(self) -> str:
        return self.launch.unit

    @property
    def index(self) -> int:
        """Its place in the unit. A replica and the one that replaces it share one."""
        return self.launch.spec.replica

    def address(self, deployment: str) -> str:
        """Where the other replicas call a deployment that runs in it."""
        return next(each.listen[0] for each in self.launch.specs if each.deployment == deployment)

    @property
    def is_leaving(self) -> bool:
        return self.kill_at is not None

    @property
    def stays(self) -> bool:
        return self.is_running and not self.is_leaving

    @property
    def is_serving(self) -> bool:
        return self.stays and self.state is State.READY

    @property
    def is_known(self) -> bool:
        """Whether its callers should know its address: once it serves, or if it is there from the start."""
        return self.stays and (self.state in _SERVED or not self.launch.spec.joins)


@dataclass(eq=False, slots=True)
class Group:
    """A unit: how many replicas it should have, of which generation, and those that it has."""

    unit: Unit
    target: int
    generation: int = 0
    """What a restart raises: replicas of an older one are replaced."""
    refused: int = 0
    """The last generation whose replacement could not start: the replicas before it stay."""
    replicas: list[Replica] = field(default_factory=list)
    """Those that run, and those that will."""
    restarts: dict[int, Restarts] = field(default_factory=dict)
    """By place."""
    due: dict[int, float] = field(default_factory=dict)
    """Place → when its replica may start again."""
    lost: set[int] = field(default_factory=set)
    """Places that were given up."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Place → replicas that were there so far."""
    files: frozenset[str] = frozenset()
    """What the newest replica that was ready is made of, and what those that have failed since were."""
    told: Addresses = field(default_factory=dict)
    """The addresses that its callers know."""

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def running(self) -> list[Replica]:
        return [each for each in self.replicas if each.is_running]

    @property
    def serving(self) -> list[Replica]:
        return [each for each in self.replicas if each.is_serving]

    @property
    def is_settled(self) -> bool:
        """As many replicas serve as should, each of the newest generation that could start, and none else is there."""
        return self.serving == self.running and len(self.serving) == self.target - len(self.lost) and not self.outdated

    @property
    def outdated(self) -> list[Replica]:
        """Those that a replacement is wanted for."""
        if self.refused >= self.generation:
            return []
        return [each for each in self.replicas if each.stays and each.generation < self.generation]

    @property
    def surplus(self) -> list[Replica]:
        """Those in places beyond the target."""
        return [each for each in self.replicas if each.stays and each.index >= self.target]

    def find_missing(self) -> Iterator[int]:
        """The places without a replica."""
        taken = {each.index for each in self.replicas if each.stays}
        return (index for index in range(self.target) if index not in taken and index not in self.lost)

    def rival(self, replica: Replica) -> Replica | None:
        """The one that shares its place: of the two, one replaces the other."""
        others = (each for each in self.replicas if each is not replica and each.index == replica.index and each.stays)
        return next(others, None)

    def addresses(self) -> Addresses:
        """Where its callers should call. Where nobody is left, what they know already: somebody will come back."""
        known = [each for each in self.replicas if each.is_known]
        return {name: tuple(each.address(name) for each in known) for name in self.unit.members} if known else self.told
