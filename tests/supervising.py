"""Fakes to replay histories with, through the real loop of the supervisor: a clock, processes and a view."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from toolkit.errors import PlacementError
from toolkit.launcher.document import Key, Place
from toolkit.launcher.events import Changed, Described, Event, Exited, Ready, Signalled
from toolkit.launcher.fleet import Addresses, Launch
from toolkit.launcher.manifest import Deployment, Graph, Replicas, Traffic
from toolkit.launcher.output import Row
from toolkit.launcher.supervisor import Limits, Supervisor
from toolkit.spec import ReplicaSpec

INT, TERM, HUP = Signalled(signal.SIGINT), Signalled(signal.SIGTERM), Signalled(signal.SIGHUP)
LIMITS = Limits(start_timeout=600.0, drain_timeout=30.0, hang_timeout=1e6)
CONTRACTS = {"leaf": "t.v1.Leaf", "middle": "t.v1.Middle", "top": "t.v1.Top"}
HANDLES = {"leaf": {}, "middle": {"leaf": "t.v1.Leaf"}, "top": {"middle": "t.v1.Middle", "leaf": "t.v1.Leaf"}}


@dataclass
class FakeView:
    interval: float | None = None
    said: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def line(self, name: str, text: str, *, is_transient: bool = False) -> None:
        self.lines.append((name, text))

    def show(self, name: str, row: Row) -> None:
        self.rows[name] = row
        self.texts.append(row.text)

    def say(self, text: str) -> None:
        self.said.append(text)

    def complain(self, text: str) -> None:
        self.complaints.append(text)

    def tick(self) -> None:
        pass

    def settle(self) -> None:
        pass


@dataclass(frozen=True)
class Sleep:
    """The launcher itself does not run for so long."""

    seconds: float


Line = Event | Sleep | float


@dataclass
class FakeProcesses:
    """Replays a script of events and of seconds that pass. Who is asked to go goes at once."""

    script: deque[Line]
    now: float = 0.0
    broken: tuple[str, ...] = ()
    deaf: tuple[str, ...] = ()
    """Those that SIGTERM does not move."""
    immortal: tuple[str, ...] = ()
    """Those that not even SIGKILL does."""
    running: set[str] = field(default_factory=set)
    spawned: list[str] = field(default_factory=list)
    specs: dict[str, ReplicaSpec] = field(default_factory=dict)
    messages: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)
    going: deque[Event] = field(default_factory=deque)
    in_vain: int = 0
    """How often in a row it was asked and no time passed."""

    def clock(self) -> float:
        return self.now

    def spawn(self, name: str, spec: ReplicaSpec, env: Mapping[str, str]) -> int:
        if name in self.broken:
            raise FileNotFoundError(2, "No such file or directory")
        self.running.add(name)
        self.spawned.append(name)
        self.specs[name] = spec
        return len(self.spawned)

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        self.messages.append((name, message))

    def dump(self, name: str) -> None:
        self.told.append(("dump", name))

    def terminate(self, name: str) -> None:
        self.told.append(("terminate", name))
        if name not in self.deaf:
            self._end(name, 0)

    def kill(self, name: str) -> None:
        self.told.append(("kill", name))
        if name not in self.immortal:
            self._end(name, -signal.SIGKILL)

    def _end(self, name: str, status: int) -> None:
        if name in self.running:
            self.running.discard(name)
            self.going.append(Exited(name, status))

    def get(self, timeout: float | None) -> Event | None:
        if self.script and isinstance(self.script[0], Sleep):
            self.now += self.script[0].seconds
            self.script.popleft()
        if self.script and isinstance(self.script[0], float):
            return self._pass_time(timeout)
        if self.going:
            return self.going.popleft()
        if not self.script:
            return self._pass_time(timeout)
        event = self.script.popleft()
        assert not isinstance(event, float | Sleep)
        if isinstance(event, Exited):
            self.running.discard(event.replica)
        return event

    def _pass_time(self, timeout: float | None) -> None:
        """To the supervisor's next point in time, or to the end of the script's pause, whichever is first."""
        pause = self.script[0] if self.script else None
        assert timeout is not None or pause is not None, "the supervisor waits for ever and nothing will happen"
        step = min(each for each in (timeout, pause) if isinstance(each, float))
        self.now += step
        self.in_vain = 0 if step else self.in_vain + 1
        assert self.in_vain < 100, "the supervisor turns without a pause"
        if isinstance(pause, float):
            self.script[0] = pause - step
            if self.script[0] <= 0:
                self.script.popleft()


@dataclass
class Told:
    """How a history ended."""

    code: int
    view: FakeView
    processes: FakeProcesses
    answers: list[tuple[int, Mapping[str, Any]]]

    @property
    def terminated(self) -> list[str]:
        return [name for verb, name in self.processes.told if verb == "terminate"]

    @property
    def killed(self) -> list[str]:
        return [name for verb, name in self.processes.told if verb == "kill"]


def specify(members: Iterable[str], index: int, number: int, **more: Any) -> ReplicaSpec:
    first, *others = (
        ReplicaSpec(service="m:C", deployment=each, replica=index, listen=(f"unix:/{each}.{index}.{number}",), **more)
        for each in members
    )
    return replace(first, companions=tuple(others))


class FakeStarts:
    """`leaf#2`, and `leaf.1` for a place that is new."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def plan(self, counts: Mapping[str, int]) -> None:
        if max(counts.values()) > 9:
            raise PlacementError("no room")

    def adopt(self, graph: Graph, counts: Mapping[str, int]) -> list[str]:
        if max(counts.values()) > 9:
            raise PlacementError("no room")
        before, self._graph = self._graph, graph
        return [name for name, each in graph.services.items() if each.args != before.services[name].args]

    def another(self, deployment: str, index: int, number: int, addresses: Addresses) -> Launch:
        name = deployment if not index else f"{deployment}.{index}"
        spec = specify(self._graph.units[deployment].members, index, number, addresses=addresses, joins=True)
        return Launch(name=name if number == 1 else f"{name}#{number}", unit=deployment, spec=spec, env={})


def graph(
    names: tuple[str, ...],
    strategy: Literal["rolling", "recreate"] = "rolling",
    most: int = 1,
    shared: Mapping[str, str] = MappingProxyType({}),
) -> Graph:
    said = {"strategy": strategy, "replicas": Replicas(min=1, max=most), "traffic": Traffic(max_concurrency=10)}
    services = {name: Deployment(service=f"m:{name.title()}", process=shared.get(name), **said) for name in names}
    places: dict[Key, Place] = {
        ("services", name): Place("graph.yaml", number + 4) for number, name in enumerate(names)
    }
    over = (Path("production.yaml"),)
    return Graph(path=Path("graph.yaml"), name="g", entry=names[-1], services=services, overrides=over, places=places)


def replay(
    *script: Line,
    names: tuple[str, ...] = ("leaf", "middle", "top"),
    replicas: Mapping[str, int] | None = None,
    limits: Limits = LIMITS,
    broken: tuple[str, ...] = (),
    deaf: tuple[str, ...] = (),
    immortal: tuple[str, ...] = (),
    strategy: Literal["rolling", "recreate"] = "rolling",
    most: int = 1,
    shared: Mapping[str, str] = MappingProxyType({}),
    edited: Callable[[Graph], Graph] = lambda graph: graph,
) -> Told:
    """`shared`: deployment → the process that it shares. `edited`: what the graph file says later."""
    processes = FakeProcesses(deque(script), broken=broken, deaf=deaf, immortal=immortal)
    view = FakeView()
    answers: list[tuple[int, Mapping[str, Any]]] = []
    up = graph(names, strategy, most, shared)
    launches = [
        Launch(
            name=name if count == 1 else f"{name}.{index}",
            unit=name,
            spec=specify(unit.members, index, 1),
            env={},
        )
        for name, unit in up.units.items()
        for count in [(replicas or {}).get(name, 1)]
        for index in range(count)
    ]
    supervisor = Supervisor(
        up,
        launches,
        starts=FakeStarts(up),
        limits=limits,
        processes=processes,
        view=view,
        clock=processes.clock,
        chance=lambda: 0.5,
        answer=lambda client, answer: answers.append((client, answer)),
        load=lambda: edited(up),
    )
    return Told(supervisor.run(), view, processes, answers)


def described(*names: str) -> list[Event]:
    return [Described(name, CONTRACTS[name.split(".")[0]], HANDLES[name.split(".")[0]]) for name in names]


def ready(*names: str) -> list[Event]:
    return [Ready(name, (f"unix:/tmp/{name}", "127.0.0.1:50051")) for name in names]


ALL = ("leaf", "middle", "top")
UP: list[Event] = [*described(*ALL), *ready(*ALL)]
EDIT = Changed((str(Path("graph.yaml").resolve()), "/p/other.yaml"))
