"""Histories that nobody has thought of: processes that crash, hang, drain, run out of memory or never start, while the graph
is scaled, restarted and edited. Whatever happens, the supervisor keeps the promises below.

A history is drawn as data, so that the shortest one that breaks a promise is found and shown; it belongs, told in words, into
`test_supervisor.py` then. Times are whole seconds, mostly: things that happen at once are what goes wrong.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from heapq import heappop, heappush
from itertools import count, pairwise
from typing import Any, Final, Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.supervising import ALL, CONTRACTS, EDIT, HANDLES, INT, FakeStarts, FakeView, graph, specify
from toolkit.launcher.events import (
    Asked,
    Changed,
    Described,
    Draining,
    Event,
    Exited,
    Failed,
    Load,
    Loaded,
    OutOfMemory,
    Ready,
    Waiting,
)
from toolkit.launcher.fleet import Group, Launch
from toolkit.launcher.lifecycle import TABLE, State
from toolkit.launcher.manifest import Replicas
from toolkit.launcher.output import Row
from toolkit.launcher.supervisor import (
    DRAIN_INCOMPLETE,
    FORCED,
    NOT_READY_IN_TIME,
    OK,
    SERVICE_FAILED,
    Limits,
    Supervisor,
)
from toolkit.spec import ReplicaSpec

LIMITS: Final = Limits(start_timeout=20.0, drain_timeout=10.0, hang_timeout=10.0)
BEAT: Final = 5.0
"""Seconds between two words of a replica that serves."""
CALM: Final = 150.0
"""Seconds without trouble after which all should be well: a pause before a restart, a start, and a drain to its end."""
TURNS: Final = 50
"""More in a row than the supervisor ever needs while no time passes and nothing is said to it."""


class Fate(Enum):
    """What becomes of a process that nobody asks to go."""

    SERVES = auto()
    EXITS = auto()
    DRAINS = auto()
    HANGS = auto()
    GROWS = auto()
    """Out of memory."""
    CANNOT_SPAWN = auto()
    FAILS = auto()
    CRASHES = auto()
    """Before it is ready, as the next two and the one before."""
    STALLS = auto()


AFTER_START: Final = (Fate.SERVES, Fate.EXITS, Fate.DRAINS, Fate.HANGS, Fate.GROWS)


@dataclass(frozen=True)
class Life:
    """One process, from its start on. Seconds."""

    start: float = 1
    waits: bool = False
    fate: Fate = Fate.SERVES
    after: int = 0
    """What it serves until its fate."""
    status: int = 0
    """Of an exit that nobody asked for."""
    goes: float | None = 0.0
    """From SIGTERM on, None: never."""
    cut_off: bool = False
    """It leaves with calls in flight."""
    dies: bool = True
    """Of SIGKILL."""
    load: int = 0


@dataclass(frozen=True)
class History:
    strategy: Literal["rolling", "recreate"]
    most: int
    """Replicas that the graph file allows of each deployment."""
    counts: tuple[int, ...]
    """Replicas that each begins with."""
    first: tuple[Life, ...]
    """The processes of the start; who has no life here serves."""
    later: tuple[Life, ...]
    """And those after them, in the order in which they start."""
    asks: tuple[tuple[int, str, str, int], ...]
    """Second, what, of whom, how many."""
    naps: tuple[tuple[int, int], ...]
    """Second, and for how many the launcher itself does not run."""
    stop_at: int | None
    """Second of the signal, None: when all is calm."""
    again: int | None
    """Seconds until another signal."""


def lives(*fates: Fate) -> st.SearchStrategy[Life]:
    return st.builds(
        Life,
        start=st.sampled_from([1, 0, 0.5, 3, 8]),
        waits=st.booleans(),
        fate=st.sampled_from(fates),
        after=st.integers(0, 20),
        status=st.sampled_from([0, 3, DRAIN_INCOMPLETE, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGTERM]),
        goes=st.sampled_from([0.0, 0.5, 3.0, 11.0, 40.0, None]),
        cut_off=st.booleans(),
        dies=st.sampled_from([True, True, True, True, False]),
        load=st.integers(0, 15),
    )


ASKS = st.tuples(
    st.integers(0, 25),
    st.sampled_from(["restart", "scale", "args", "replicas", "strategy", "touch", "touch all", "ps", "metrics"]),
    st.sampled_from(["leaf", "leaf", "middle", "top"]),
    st.integers(1, 4),
)


@st.composite
def histories(draw: st.DrawFn) -> History:
    most = draw(st.sampled_from([1, 3]))
    first = lives(*Fate) if draw(st.integers(0, 9)) == 9 else lives(*AFTER_START)
    return History(
        strategy=draw(st.sampled_from(["rolling", "recreate"])),
        most=most,
        counts=tuple(draw(st.integers(1, min(most, 2))) for _ in ALL),
        first=tuple(draw(st.lists(first, max_size=6))),
        later=tuple(draw(st.lists(lives(*Fate), max_size=10))),
        asks=tuple(draw(st.lists(ASKS, max_size=8))),
        naps=tuple(draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 90)), max_size=1))),
        stop_at=draw(st.none() | st.none() | st.integers(0, 80)),
        again=draw(st.none() | st.integers(0, 30)),
    )


class Rows(FakeView):
    """Keeps the states of each replica, in the order in which they were shown."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, list[State]] = {}

    def show(self, name: str, row: Row) -> None:
        super().show(name, row)
        self.states.setdefault(name, [State.PENDING]).append(State(row.state))


@dataclass(eq=False)
class Process:
    name: str
    spec: ReplicaSpec
    life: Life
    addresses: dict[str, tuple[str, ...]]
    """Where it calls the others: what it has been told."""
    is_alive: bool = True
    is_asked: bool = False
    """To go, or it was killed."""
    is_ready: bool = False
    drains: bool = False
    is_silent: bool = False


Happening = Callable[[], Event | None]


@dataclass
class World:
    """The processes of a history, and its clock. Looks at the supervisor whenever that waits."""

    history: History
    now: float = 0.0
    processes: dict[str, Process] = field(default_factory=dict)
    answers: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    signals: int = 0
    calm_at: float = CALM
    """When the last trouble is over long enough, as far as is known."""
    was_calm: bool = False
    broken: list[str] = field(default_factory=list)
    """Promises that did not hold while the graph was up."""

    def __post_init__(self) -> None:
        history = self.history
        self._coming: list[tuple[float, int, Happening]] = []
        self._number = count()
        self._turns = 0
        self._excused: set[str] = set()
        self._resized: set[str] = set()
        self._complaints = 0
        self._file = graph(ALL, history.strategy, history.most)
        self._later = iter(history.later)
        self._is_prepared = False
        self.view = Rows()
        where = {
            name: tuple(f"unix:/{name}.{index}.1" for index in range(many))
            for name, many in zip(ALL, history.counts, strict=True)
        }
        launches = [
            Launch(
                name=name if many == 1 else f"{name}.{index}",
                unit=name,
                spec=specify((name,), index, 1, addresses=where),
                env={},
            )
            for name, many in zip(ALL, history.counts, strict=True)
            for index in range(many)
        ]
        self._first = {launch.name: life for launch, life in zip(launches, history.first, strict=False)}
        self.supervisor = Supervisor(
            self._file,
            launches,
            starts=FakeStarts(self._file),
            limits=LIMITS,
            processes=self,
            view=self.view,
            clock=lambda: self.now,
            chance=lambda: 0.5,
            answer=lambda client, answer: self.answers.update({client: answer}),
            load=lambda: self._file,
        )
        if history.stop_at is not None:
            self._in(history.stop_at, self._interrupt)
        self._in(self.calm_at, self._look_when_calm)

    # What the supervisor asks of processes

    def spawn(self, name: str, spec: ReplicaSpec, env: Mapping[str, str]) -> int:
        assert name not in self.processes, f"{name} is started twice"
        life = self._first.pop(name, Life()) if not spec.joins else next(self._later, Life())
        if life.fate is Fate.CANNOT_SPAWN:
            self._trouble(0)
            raise OSError(11, "Resource temporarily unavailable")
        process = Process(name, spec, life, dict(spec.addresses))
        self.processes[name] = process
        deployment = spec.deployment
        self._says(0, process, Described(name, CONTRACTS[deployment], HANDLES[deployment]))
        self._says(0, process, Loaded(name, (f"/p/{deployment}.py", "/p/common.py")))
        if life.waits:
            self._says(life.start / 2, process, Waiting(name, ("x",)))
        match life.fate:
            case Fate.FAILS:
                self._says(life.start, process, Failed(name, "cannot"))
                self._in(life.start, lambda: self._end(process, 1))
            case Fate.CRASHES:
                self._in(life.start, lambda: self._end(process, -signal.SIGSEGV))
            case Fate.STALLS:
                self._trouble(LIMITS.start_timeout)
            case _:
                self._in(life.start, lambda: self._readies(process))
        return len(self.processes)

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        self.processes[name].addresses.update(message.get("addresses", {}))

    def dump(self, name: str) -> None:
        pass

    def terminate(self, name: str) -> None:
        process = self.processes[name]
        is_first, process.is_asked = not process.is_asked, True
        self._trouble(LIMITS.drain_timeout)
        if process.life.goes is not None and not process.is_silent and is_first:
            if process.is_ready:
                self._says(0, process, self._drain(process))
            status = DRAIN_INCOMPLETE if process.life.cut_off and process.is_ready else 0
            self._in(process.life.goes, lambda: self._end(process, status))

    def kill(self, name: str) -> None:
        process = self.processes[name]
        process.is_asked = True
        self._trouble(0)
        if process.life.dies:
            self._in(0, lambda: self._end(process, -signal.SIGKILL))

    def get(self, timeout: float | None) -> Event | None:
        if self.supervisor.is_serving:
            self._prepare()
            if not self.supervisor.is_stopping:
                self._look()
        until = None if timeout is None else self.now + timeout
        while self._coming and (until is None or self._coming[0][0] <= until):
            at, _, happening = heappop(self._coming)
            self._turns = 0
            self.now = max(self.now, at)
            event = happening()
            if event is not None:
                return event
        assert until is not None, "it waits for ever, and nothing will happen"
        self._turns = self._turns + 1 if until <= self.now else 0
        assert self._turns < TURNS, "it turns without a pause"
        self.now = max(self.now, until)
        return None

    # What happens to them

    def _in(self, seconds: float, happening: Happening) -> None:
        heappush(self._coming, (self.now + seconds, next(self._number), happening))

    def _trouble(self, seconds: float) -> None:
        """There is some until then."""
        self.calm_at = max(self.calm_at, self.now + seconds + CALM)

    def _says(self, seconds: float, process: Process, event: Event) -> None:
        self._in(seconds, lambda: event if process.is_alive and not process.is_silent else None)

    def _end(self, process: Process, status: int) -> Event | None:
        if not process.is_alive:
            return None
        process.is_alive = False
        self._trouble(0)
        return Exited(process.name, status)

    def _readies(self, process: Process) -> Event | None:
        if not process.is_alive or process.is_asked:
            return None
        process.is_ready = True
        self._in(BEAT, lambda: self._beats(process))
        if process.life.fate is not Fate.SERVES:
            self._trouble(process.life.after)
            self._in(process.life.after, lambda: self._fulfil(process))
        return Ready(process.name, (process.spec.listen[0],))

    def _beats(self, process: Process) -> Event | None:
        if not process.is_alive or process.is_silent or process.drains:
            return None
        self._in(BEAT, lambda: self._beats(process))
        return Load(process.name, process.life.load, process.life.load, 0.1)

    def _fulfil(self, process: Process) -> Event | None:
        if not process.is_alive or process.is_asked:
            return None
        self._trouble(LIMITS.drain_timeout)
        match process.life.fate:
            case Fate.EXITS:
                return self._end(process, process.life.status)
            case Fate.HANGS:
                process.is_silent = True
            case Fate.GROWS:
                return OutOfMemory(process.name, 2, 1)
            case _:
                goes = process.life.goes
                if goes is not None:
                    self._in(goes, lambda: self._end(process, process.life.status))
                return self._drain(process)
        return None

    def _drain(self, process: Process) -> Draining:
        process.drains = True
        return Draining(process.name)

    def _prepare(self) -> None:
        """What is to come once the graph is up."""
        if not self._is_prepared:
            self._is_prepared = True
            for second, what, name, many in self.history.asks:
                self._trouble(second)
                self._in(second, lambda what=what, name=name, many=many: self._ask(what, name, many))
            for second, seconds in self.history.naps:
                self._trouble(second + seconds)
                self._in(second, lambda seconds=seconds: self._nap(seconds))

    def _ask(self, what: str, name: str, many: int) -> Event:
        if what in ("scale", "replicas"):
            self._resized.add(name)
        match what:
            case "touch":
                return Changed((f"/p/{name}.py",))
            case "touch all":
                return Changed(("/p/common.py",))
            case "args":
                return self._edit(name, args={"n": self.now})
            case "replicas":
                return self._edit(name, replicas=Replicas(min=many, max=many + 1))
            case "strategy":
                return self._edit(name, strategy="recreate" if many % 2 else "rolling")
        self.asked.append(len(self.asked))
        return Asked(self.asked[-1], {"do": what, "services": [name], "counts": {name: many}})

    def _edit(self, name: str, **said: Any) -> Event:
        services = self._file.services
        self._file = replace(self._file, services={**services, name: replace(services[name], **said)})
        return EDIT

    def _nap(self, seconds: int) -> None:
        self.now += seconds

    def _interrupt(self) -> Event:
        self.signals += 1
        if self.signals == 1 and self.history.again is not None:
            self._in(self.history.again, self._interrupt)
        return INT

    # What the supervisor promises meanwhile

    def _look(self) -> None:
        for group in self.supervisor.groups.values():
            self._look_who_serves(group)
        for caller in self.processes.values():
            if caller.is_alive and not caller.is_asked:
                self._look_where_it_calls(caller)
        self._complaints = len(self.view.complaints)

    def _look_who_serves(self, group: Group) -> None:
        """Where nobody serves, a restart is due, or an end was told, or one drains, or the file wants it so, or somebody who
        has asked for another number of replicas: those in the places beyond leave at once.
        """
        if group.is_settled:
            self._resized.discard(group.name)
        if group.serving:
            self._excused.discard(group.name)
            return
        is_told = any(said.startswith(group.name) for said in self.view.complaints[self._complaints :])
        is_recreated = group.unit.said.strategy == "recreate"
        drains = any(each.state is State.DRAINING and each.stays for each in group.replicas)
        if is_told or drains or group.due or group.name in self._resized or is_recreated:
            self._excused.add(group.name)
        if group.name not in self._excused:
            self.broken.append(f"{self.now:g} s: nobody serves {group.name}, and nothing was said")
        if not group.running and not group.due:
            self.broken.append(f"{self.now:g} s: nobody serves {group.name}, and nobody will")

    def _look_where_it_calls(self, caller: Process) -> None:
        """It knows no address of a process that is gone or goes, but where there is no other."""
        for name in HANDLES[caller.spec.deployment]:
            those = [each for each in self.processes.values() if each.spec.deployment == name]
            gone = {each.spec.listen[0] for each in those if not each.is_alive or each.is_asked}
            if self.supervisor.groups[name].serving and not gone.isdisjoint(caller.addresses[name]):
                self.broken.append(f"{self.now:g} s: {caller.name} calls {name} at {caller.addresses[name]}")

    def _look_when_calm(self) -> Event | None:
        """All is as it should be, and everybody who asked is answered."""
        if self.now < self.calm_at:
            self._in(self.calm_at - self.now, self._look_when_calm)
            return None
        if self.signals:
            raise AssertionError("it has not ended long after the signal")
        assert self.supervisor.is_serving, "it neither serves nor ends"
        self.was_calm = True
        for group in self.supervisor.groups.values():
            if not group.is_settled or group.due:
                rows = [(each.name, each.state.value, each.generation) for each in group.replicas]
                self.broken.append(f"{group.name} is not as it should be: {group.target=} {group.generation=} {rows}")
        self.broken += [f"request {each} is not answered" for each in self.asked if each not in self.answers]
        self._in(CALM, self._look_when_calm)
        return self._interrupt()


# The promises


def left_behind(world: World) -> set[str]:
    return {each.split(":")[0] for each in world.view.complaints if each.endswith("left behind")}


def keeps_what_it_promises_while_up(world: World, code: int) -> None:
    """Somebody serves, or it is told why not; nobody calls one who is gone; and after the trouble all is well again."""
    assert not world.broken


def reaps_all_that_it_started(world: World, code: int) -> None:
    """At the end no process is left but those that it says it leaves behind, for they do not die of SIGKILL."""
    assert {name for name, each in world.processes.items() if each.is_alive} <= left_behind(world)


def exits_with_a_code_that_says_why(world: World, code: int) -> None:
    """0 after a signal, 8 where calls were cut off, 1 where a replica failed for good, 4 where the start
    took too long, 128 + 2 after a second signal."""
    assert code in (OK, SERVICE_FAILED, NOT_READY_IN_TIME, DRAIN_INCOMPLETE, FORCED + signal.SIGINT)
    assert world.signals or code in (SERVICE_FAILED, NOT_READY_IN_TIME)
    assert world.signals < 2 or code == FORCED + signal.SIGINT
    assert code in (OK, FORCED + signal.SIGINT) or world.view.complaints


def moves_as_the_table_of_the_lifecycle_says(world: World, code: int) -> None:
    """A replica goes from state to state by rows of the table only, and ends stopped or failed."""
    rows = {(state, after) for (state, _), after in TABLE.items()}
    for name, states in world.view.states.items():
        assert set(pairwise(states)) <= rows, name
        assert states[-1] in (State.STOPPED, State.FAILED) or name in left_behind(world), name


PROMISES: Final = (
    keeps_what_it_promises_while_up,
    reaps_all_that_it_started,
    exits_with_a_code_that_says_why,
    moves_as_the_table_of_the_lifecycle_says,
)


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(histories())
def test_whatever_happens_the_supervisor_keeps_its_promises(history: History) -> None:
    """And it neither raises, nor turns without a pause, nor waits for ever: the world stops it there."""
    world = World(history)
    code = world.supervisor.run()
    for promise in PROMISES:
        promise(world, code)
