"""The one loop of `toolkit up`: it starts all replicas, hears what happens to them, and takes them down.

Everything comes in as a typed event on one queue; the processes, the clock and the view are handed in, so that a test
can replay a history. It knows no user code: what the classes declare arrives in their first event.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from toolkit.launcher.edges import Description, find_edges, find_problems, find_tiers
from toolkit.launcher.events import (
    Described,
    Draining,
    Event,
    Exited,
    Failed,
    OutOfMemory,
    Output,
    Progress,
    Ready,
    Signalled,
    Waiting,
)
from toolkit.launcher.lifecycle import ProtocolError, State, Step, advance
from toolkit.launcher.manifest import Graph
from toolkit.launcher.output import Row, View
from toolkit.launcher.processes import ProcessTable
from toolkit.spec import ReplicaSpec

OK = 0
SERVICE_FAILED = 1
GRAPH_WRONG = 2
NOT_READY_IN_TIME = 4
DRAIN_INCOMPLETE = 8
FORCED = 128
"""Plus the number of the second signal."""

STOP_GRACE = 2.0
"""Seconds for a replica that serves nobody yet to go by itself."""
EXIT_GRACE = 2.0
"""Seconds to exit, after a drain's own limit."""
KILL_GRACE = 10.0
"""Seconds after SIGKILL until a process counts as stuck in the kernel, and is left behind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """One replica to start."""

    name: str
    spec: ReplicaSpec
    env: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds."""

    start_timeout: float
    """Until every replica is ready."""
    drain_timeout: float
    """For the calls that one tier of replicas still has in flight."""


_PENDING = Row(state=State.PENDING.value)


@dataclass(eq=False, slots=True)
class _Replica:
    launch: Launch
    state: State = State.PENDING
    row: Row = _PENDING
    is_running: bool = False
    has_served: bool = False
    """It was ready when it was asked to stop: calls may have been lost if it had to be killed."""
    kill_at: float | None = None
    """It was asked to stop; at this time it is killed."""
    is_killed: bool = False

    @property
    def name(self) -> str:
        return self.launch.name

    @property
    def deployment(self) -> str:
        return self.launch.spec.deployment


class Supervisor:
    """Runs the replicas of one graph, once."""

    def __init__(
        self,
        graph: Graph,
        launches: Sequence[Launch],
        *,
        limits: Limits,
        processes: ProcessTable,
        view: View,
        clock: Callable[[], float],
    ) -> None:
        self._graph = graph
        self._limits = limits
        self._processes = processes
        self._view = view
        self._clock = clock
        self._replicas = {launch.name: _Replica(launch) for launch in launches}
        self._descriptions: dict[str, Description] = {}
        self._entry_addresses: tuple[str, ...] = ()
        self._started_at = clock()
        self._is_serving = False
        self._exit_code: int | None = None
        """Set once it stops: the first reason counts, a second signal overrides it."""

    def run(self) -> int:
        """Until the last replica is gone. Returns the exit code of `toolkit up`."""
        self._spawn_all()
        while any(replica.is_running for replica in self._replicas.values()):
            event = self._processes.get(self._patience())
            if event is not None:
                self._handle(event)
            self._check_clock()
        self._view.settle()
        return OK if self._exit_code is None else self._exit_code

    # Events

    def _handle(self, event: Event) -> None:
        match event:
            case Signalled(number):
                self._signalled(number)
            case Output(name, text, is_transient):
                self._view.line(name, text, is_transient=is_transient)
            case OutOfMemory(name):
                self._failed(self._replicas[name], event.message)
            case Exited(name, status):
                self._exited(self._replicas[name], status)
            case _:
                self._told(self._replicas[event.replica], event)

    def _told(self, replica: _Replica, event: Event) -> None:
        """What a replica says of itself."""
        try:
            match event:
                case Described(_, contract, handles, batched):
                    self._move(replica, Step.DESCRIBED)
                    self._described(replica, Description(contract, handles, batched))
                case Progress(_, phase, done, total):
                    self._move(replica, Step.PROGRESSED, phase=phase, done=done, total=total)
                case Waiting(_, handles):
                    self._move(replica, Step.WAITED, phase=f"waiting for {', '.join(handles)}")
                case Ready(_, addresses):
                    self._move(replica, Step.READIED, phase=f"ready after {self._elapsed():.1f} s")
                    self._ready(replica, addresses)
                case Failed(_, message):
                    self._failed(replica, message)
                case Draining():
                    self._move(replica, Step.DRAINED)
        except ProtocolError as error:
            self._failed(replica, f"broke the protocol of its control socket: {error}")

    def _described(self, replica: _Replica, description: Description) -> None:
        self._descriptions.setdefault(replica.deployment, description)
        if len(self._descriptions) == len(self._graph.services):
            self._refuse_wrong_edges()

    def _refuse_wrong_edges(self) -> bool:
        problems = [] if self._exit_code is not None else find_problems(self._graph, self._descriptions)
        if problems:
            self._stop(GRAPH_WRONG, *problems)
        return bool(problems)

    def _ready(self, replica: _Replica, addresses: tuple[str, ...]) -> None:
        if replica.deployment == self._graph.entry:
            self._entry_addresses = addresses
        if self._exit_code is None and all(each.state is State.READY for each in self._replicas.values()):
            self._is_serving = True
            self._view.settle()
            self._announce()

    def _announce(self) -> None:
        graph, count = self._graph, len(self._replicas)
        at = next((each for each in self._entry_addresses if not each.startswith("unix:")), "no TCP address")
        replicas = f"{count} replica{'s' if count > 1 else ''}"
        self._view.say(f"ready: {graph.name} on {at} ({replicas}, {self._elapsed():.1f} s)")
        self._view.say(f"call it: toolkit call METHOD '{{}}' --graph {graph.path}  (a method of {self._contract()})")

    def _contract(self) -> str:
        return self._descriptions[self._graph.entry].contract

    def _failed(self, replica: _Replica, message: str) -> None:
        if replica.state is State.FAILED:
            return
        self._move(replica, Step.FAILED)
        if self._exit_code is None and self._refuse_wrong_edges():
            return  # the graph file is at fault, and its sentence names the line
        self._stop(SERVICE_FAILED, f"{replica.name}: {message}")

    def _exited(self, replica: _Replica, status: int) -> None:
        replica.is_running = False
        was = replica.state
        self._move(replica, Step.EXITED if self._is_expected(replica, status) else Step.DIED)
        is_news = was is not State.FAILED and replica.state is State.FAILED
        if status == DRAIN_INCOMPLETE and replica.kill_at is not None:
            self._view.complain(f"{replica.name}: calls were still in flight at the end of its drain, and were cut off")
            self._exit_code = self._exit_code or DRAIN_INCOMPLETE
        if is_news or self._exit_code is None:
            self._stop(SERVICE_FAILED, f"{replica.name}: {_obituary(was, status)}")
        self._drain_next_tier()

    def _is_expected(self, replica: _Replica, status: int) -> bool:
        """SIGTERM ends a replica that had no time yet to catch it."""
        is_ours = replica.kill_at is not None and status == -signal.SIGTERM
        is_drained = replica.kill_at is not None and status == DRAIN_INCOMPLETE
        return status == 0 or is_drained or is_ours or (replica.is_killed and status == -signal.SIGKILL)

    def _signalled(self, number: int) -> None:
        name = _signal_name(number)
        if self._exit_code is None:
            self._view.say(f"{name}: draining, callers first; once more kills")
            self._stop(OK)
        else:
            self._view.say(f"{name} again: killing")
            self._exit_code = FORCED + number
            for replica in self._replicas.values():
                self._kill(replica)

    # Actions

    def _spawn_all(self) -> None:
        for replica in self._replicas.values():
            if self._exit_code is not None:
                self._move(replica, Step.DRAINED)
                continue
            try:
                self._processes.spawn(replica.name, replica.launch.spec, replica.launch.env)
            except OSError as error:
                self._move(replica, Step.FAILED)
                self._stop(SERVICE_FAILED, f"{replica.name}: its process cannot be started: {error}")
            else:
                replica.is_running = True
                self._move(replica, Step.SPAWNED)

    def _stop(self, code: int, *complaints: str) -> None:
        """Begin to take everything down. What serves nobody goes at once; the rest drains tier by tier."""
        self._view.settle()
        for complaint in complaints:
            self._view.complain(complaint)
        if self._exit_code is None:
            self._exit_code = code
            for replica in self._replicas.values():
                if replica.state not in (State.READY, State.DRAINING):
                    self._ask_to_stop(replica, STOP_GRACE)
            self._drain_next_tier()
        elif self._exit_code == OK:
            self._exit_code = code

    def _drain_next_tier(self) -> None:
        """Ask the first tier that still runs, unless it was asked: its callees wait until it is gone."""
        for tier in find_tiers(find_edges(self._graph, self._descriptions)):
            running = [each for each in self._replicas.values() if each.is_running and each.deployment in tier]
            for replica in running:
                if replica.kill_at is None:
                    self._ask_to_stop(replica, self._limits.drain_timeout + EXIT_GRACE)
            if running:
                return

    def _ask_to_stop(self, replica: _Replica, grace: float) -> None:
        if replica.is_running:
            replica.has_served = replica.state in (State.READY, State.DRAINING)
            self._move(replica, Step.DRAINED)
            replica.kill_at = self._clock() + grace
            self._processes.terminate(replica.name)

    def _kill(self, replica: _Replica) -> None:
        if replica.is_running:
            replica.is_killed = True
            replica.kill_at = self._clock() + KILL_GRACE
            self._move(replica, Step.DRAINED)
            self._processes.kill(replica.name)

    # Time

    def _patience(self) -> float | None:
        """Seconds until something has to happen even if nobody says anything."""
        points = [each.kill_at for each in self._replicas.values() if each.is_running and each.kill_at is not None]
        if self._is_starting():
            points.append(self._started_at + self._limits.start_timeout)
        waits = [max(0.0, point - self._clock()) for point in points]
        if self._view.interval is not None:
            waits.append(self._view.interval)
        return min(waits, default=None)

    def _check_clock(self) -> None:
        self._view.tick()
        now = self._clock()
        if self._is_starting() and now >= self._started_at + self._limits.start_timeout:
            self._stop(NOT_READY_IN_TIME, self._lateness())
        for replica in self._replicas.values():
            if replica.is_running and replica.kill_at is not None and now >= replica.kill_at:
                self._overdue(replica)

    def _overdue(self, replica: _Replica) -> None:
        if replica.is_killed:
            self._view.complain(f"{replica.name}: does not die even of SIGKILL; left behind")
            replica.is_running = False
            self._exit_code = self._exit_code or DRAIN_INCOMPLETE
            self._drain_next_tier()
            return
        if replica.has_served:
            self._view.complain(
                f"{replica.name}: still busy after {self._limits.drain_timeout:g} s of draining; killed"
            )
            self._exit_code = self._exit_code or DRAIN_INCOMPLETE
        self._kill(replica)

    def _is_starting(self) -> bool:
        return not self._is_serving and self._exit_code is None

    def _elapsed(self) -> float:
        return self._clock() - self._started_at

    def _lateness(self) -> str:
        late = [f"{each.name} ({each.row.text})" for each in self._replicas.values() if each.state is not State.READY]
        cure = "raise --start-timeout if it needs longer"
        return f"not ready after {self._limits.start_timeout:g} s: {', '.join(late)}; {cure}"

    # State

    def _move(
        self, replica: _Replica, step: Step, *, phase: str = "", done: float = 0, total: float | None = None
    ) -> None:
        replica.state = advance(replica.state, step)
        row = Row(state=replica.state.value, phase=phase, done=done, total=total)
        if row != replica.row:
            replica.row = row
            self._view.show(replica.name, row)


def _obituary(was: State, status: int) -> str:
    when = {State.READY: "while it served", State.DRAINING: "while it drained"}.get(was, "before it was ready")
    if status >= 0:
        return f"exited with code {status} {when}; its last lines are above"
    if status == -signal.SIGKILL:
        return f"was ended by SIGKILL {when}; the kernel does that when memory runs out"
    return f"was ended by {_signal_name(-status)} {when}; its last lines are above"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
