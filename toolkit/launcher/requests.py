"""What can be asked of a running graph, and when that is done. Decides nothing: the supervisor does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from toolkit.errors import PlacementError
from toolkit.launcher.events import Asked
from toolkit.launcher.fleet import Group, Replica
from toolkit.launcher.hints import near
from toolkit.launcher.lifecycle import State
from toolkit.launcher.manifest import MAX_REPLICAS, Graph
from toolkit.metrics import Sample

Answer = Mapping[str, Any]
Answerer = Callable[[int, Answer], None]
FAILED, WRONG, NO_ROOM = 1, 2, 3
BACKOFF, LOST = "backoff", State.FAILED.value
"""Of places whose replica is gone: it comes back, or not."""
STATES = (*(state.value for state in State), BACKOFF)


class Ruler(Protocol):
    """What the supervisor lets others ask for."""

    graph: Graph
    is_serving: bool

    @property
    def groups(self) -> Mapping[str, Group]: ...

    @property
    def now(self) -> float: ...

    def restart(self, names: Iterable[str]) -> None: ...

    def scale(self, counts: Mapping[str, int]) -> None: ...

    def stop(self) -> None: ...


class Requests:
    """Those that are under way. Each is answered once, or not at all where the graph ends first."""

    def __init__(self, ruler: Ruler, answer: Answerer) -> None:
        self._ruler = ruler
        self._answer = answer
        self._open: list[tuple[int, Callable[[], Answer | None]]] = []

    def take(self, asked: Asked) -> None:
        answer = self._begin(asked.request)
        if callable(answer):
            self._open.append((asked.client, answer))
        else:
            self._answer(asked.client, answer)

    def settle(self) -> None:
        """Answer those that are done by now."""
        if self._open:
            answers = [(client, check, check()) for client, check in self._open]
            self._open = [(client, check) for client, check, answer in answers if answer is None]
            for client, _, answer in answers:
                if answer is not None:
                    self._answer(client, answer)

    def _begin(self, request: Mapping[str, Any]) -> Answer | Callable[[], Answer | None]:
        match request:
            case {"do": "ps"}:
                return {"code": 0, "name": self._ruler.graph.name, "replicas": describe(self._ruler)}
            case {"do": "metrics"}:
                return {"code": 0, "said": measure(self._ruler)}
            case {"do": "wait"}:
                return lambda: {"code": 0} if self._ruler.is_serving else None
            case {"do": "down"}:
                self._ruler.stop()
                return lambda: None
            case {"do": "restart", "services": list(names)}:
                return self._restart([str(name) for name in names])
            case {"do": "scale", "counts": dict(counts)}:
                return self._scale(counts)
        return _refuse("the graph was started by another version of the toolkit: take it down, and up again")

    def _restart(self, names: list[str]) -> Answer | Callable[[], Answer | None]:
        problem = self._find_problem(names)
        if problem is not None:
            return problem
        units = list(dict.fromkeys(map(self._unit, names or self._ruler.groups)))
        self._ruler.restart(units)
        return lambda: _outcome(map(self._ruler.groups.__getitem__, units))

    def _scale(self, counts: Mapping[str, Any]) -> Answer | Callable[[], Answer | None]:
        problem = self._find_problem(counts)
        if problem is not None:
            return problem
        wanted: dict[str, int] = {}
        for name, count in counts.items():
            if type(count) is not int or not 1 <= count <= MAX_REPLICAS:
                return _refuse(f"{name}={count}: name a number from 1 to {MAX_REPLICAS}")
            unit = self._ruler.groups[self._unit(name)].unit
            said = unit.said.replicas
            if said.min < said.max and not said.min <= count <= said.max:
                return _refuse(
                    f"{name}={count}: the graph file says from {said.min} to {said.max}; "
                    "name one of these, or change it there"
                )
            if wanted.setdefault(unit.name, count) != count:
                return _refuse(f"{name}={count}: there are as many of all in the process {unit.label}; name one number")
            ports = [port for member in unit.members if (port := self._ruler.graph.port(member)) is not None]
            if count > 1 and ports:
                return _refuse(
                    f"{name}={count}: port {ports[0]} takes one process; put a deployment of one replica before it"
                )
        try:
            self._ruler.scale(wanted)
        except PlacementError as error:
            return {"code": NO_ROOM, "error": str(error)}
        return lambda: _outcome(map(self._ruler.groups.__getitem__, wanted))

    def _find_problem(self, names: Iterable[str]) -> Answer | None:
        for name in names:
            if name not in self._ruler.groups and name not in self._ruler.graph.services:
                known = near(name, self._ruler.graph.services) or "there are " + ", ".join(self._ruler.graph.services)
                return _refuse(f"no deployment is named {name!r}; {known}")
        if not self._ruler.is_serving:
            return {"code": FAILED, "error": "the graph is still starting; ask again when it is ready"}
        return None

    def _unit(self, name: str) -> str:
        """A deployment stands for the process that it shares."""
        said = self._ruler.graph.services.get(name)
        return name if said is None else said.process or name


def describe(ruler: Ruler) -> list[dict[str, Any]]:
    """A row for each replica, and for each place whose replica is gone."""
    found = []
    for group in ruler.groups.values():
        found += [_row(ruler, group, replica) for replica in sorted(group.running, key=lambda each: each.index)]
        for index in sorted({*group.due, *group.lost}):
            state = BACKOFF if index in group.due else LOST
            found.append({"name": f"{group.name}.{index}", "deployments": list(group.unit.members), "state": state})
    return found


def measure(ruler: Ruler) -> list[tuple[str, Sequence[Sample]]]:
    """What replicas have measured, by their names, and, without a name, what is known here."""
    states = Counter((name, row["state"]) for row in describe(ruler) for name in row["deployments"])
    ours: list[Sample] = []
    for group in ruler.groups.values():
        for name in group.unit.members:
            ours += [("toolkit_replicas", (name, state), states[name, state]) for state in STATES]
            ours.append(("toolkit_replica_starts_total", (name,), sum(group.numbers.values())))
    running = [replica for group in ruler.groups.values() for replica in group.running]
    return [("", ours), *((replica.name, replica.samples) for replica in running)]


def _row(ruler: Ruler, group: Group, replica: Replica) -> dict[str, Any]:
    load = replica.load
    restarts = group.restarts.get(replica.index)
    return {
        "name": replica.name,
        "deployments": list(group.unit.members),
        "state": replica.state.value,
        "phase": replica.row.phase,
        "pid": replica.pid,
        "device": ", ".join(dict.fromkeys(each.device for each in replica.launch.specs)),
        "uptime": round(ruler.now - replica.started_at, 1),
        "restarts": restarts.count if restarts else 0,
        "running": load.running if load else 0,
        "queued": load.queued if load else 0,
        "addresses": [address for each in replica.launch.specs for address in each.listen],
    }


def _outcome(groups: Iterable[Group]) -> Answer | None:
    found = list(groups)
    if not all(group.is_settled for group in found):
        return None
    problems = [
        f"{group.name}: the new replica could not start, and the old one goes on serving; see toolkit logs {group.name}"
        for group in found
        if group.refused and group.refused >= group.generation
    ]
    problems += [
        f"{group.name}: {len(group.lost)} of {group.target} replicas could not start; see toolkit logs {group.name}"
        for group in found
        if group.lost
    ]
    return {"code": FAILED, "error": "\n".join(problems)} if problems else {"code": 0}


def _refuse(why: str) -> Answer:
    return {"code": WRONG, "error": why}
