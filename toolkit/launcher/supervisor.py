"""The one loop of `toolkit up`: it starts all replicas, hears what happens to them, mends what breaks, and takes them down.

Everything comes in as a typed event on one queue; the processes, the clock and the view are handed in, so that a test
can replay a history. It knows no user code: what the classes declare arrives in their first event.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import random

from toolkit.errors import GraphError, PlacementError
from toolkit.launcher.changes import find_fixed
from toolkit.launcher.edges import Description, Edges, find_calls, find_edges, find_problems, find_tiers
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
    Measured,
    Noted,
    OutOfMemory,
    Output,
    Progress,
    Ready,
    Said,
    Signalled,
    Waiting,
)
from toolkit.launcher.fleet import Group, Launch, Replica, Starts
from toolkit.launcher.lifecycle import ProtocolError, State, Step, advance
from toolkit.launcher.manifest import Graph, Unit
from toolkit.launcher.output import Row, View
from toolkit.launcher.processes import ProcessTable
from toolkit.launcher.requests import Answerer, Requests
from toolkit.launcher.restarts import DEFAULT_RESTARTS, RestartOptions, Restarts
from toolkit.launcher.scaling import Demand, Scaler
from toolkit.spec import LOAD_INTERVAL, ReplicaSpec

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
DUMP_GRACE = 0.5
"""Seconds for a replica that hangs to say where."""
CAPACITY = ReplicaSpec(service="").max_concurrency
SCALE_EVERY = 1.0
"""Seconds between two looks at how many replicas the calls need."""
PAUSE = 1.0
"""Seconds by which the launcher may be late itself; what is more it does not count against anybody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Seconds."""

    start_timeout: float
    """Until every replica is ready."""
    drain_timeout: float
    """For the calls that one tier of replicas still has in flight."""
    hang_timeout: float = 10.0
    """Without a turn of its event loop, after which a replica is replaced."""


class Supervisor:
    """Runs the replicas of one graph, once."""

    def __init__(
        self,
        graph: Graph,
        launches: Sequence[Launch],
        *,
        starts: Starts,
        limits: Limits,
        processes: ProcessTable,
        view: View,
        clock: Callable[[], float],
        chance: Callable[[], float] = random,
        restarts: RestartOptions = DEFAULT_RESTARTS,
        answer: Answerer = lambda client, answer: None,
        load: Callable[[], Graph] | None = None,
    ) -> None:
        """`load` reads the graph file again, once it has changed."""
        self.graph = graph
        self._starts = starts
        self._limits = limits
        self._processes = processes
        self._view = view
        self._clock = clock
        self._chance = chance
        self._restarts = restarts
        self._load = load
        self.groups = {name: Group(unit, 0) for name, unit in graph.units.items()}
        self._requests = Requests(self, answer)
        self._scalers = _make_scalers(graph, clock)
        self._scale_at = clock()
        self._replicas: dict[str, Replica] = {}
        for launch in launches:
            group = self._add(Replica(launch))
            group.target += 1
            group.numbers[launch.spec.replica] = 1
        self._descriptions: dict[str, Description] = {}
        self._entry_addresses: tuple[str, ...] = ()
        self._started_at = clock()
        self._start_by = self._started_at + limits.start_timeout
        self.is_serving = False
        self._exit_code: int | None = None
        """Set once it stops: the first reason counts, a second signal overrides it."""

    def run(self) -> int:
        """Until the last replica is gone. Returns the exit code of `toolkit up`."""
        for group in self.groups.values():
            group.told = {name: tuple(each.address(name) for each in group.replicas) for name in group.unit.members}
        self._spawn_all()
        while self._exit_code is None or any(each.is_running for each in self._replicas.values()):
            event = self._next_event()
            if event is not None:
                self._handle(event)
            self._check_clock(is_quiet=event is None)
            self._mend()
            self._requests.settle()
        self._view.settle()
        return self._exit_code

    @property
    def is_stopping(self) -> bool:
        return self._exit_code is not None

    @property
    def now(self) -> float:
        return self._clock()

    def restart(self, names: Iterable[str]) -> None:
        """Replace the replicas of these units; those that were given up get another chance."""
        for group in map(self.groups.__getitem__, names):
            group.generation += 1
            group.due.clear()
            group.lost.clear()

    def scale(self, counts: Mapping[str, int]) -> None:
        """Of each of these units so many. Raises PlacementError, and changes nothing, where the machine has no room for them.
        What `replicas` of the file allows goes on from there.
        """
        self._starts.plan(counts)
        for name, count in counts.items():
            self._resize(self.groups[name], count)

    def _resize(self, group: Group, count: int) -> None:
        group.target = count
        group.lost.clear()
        group.due = {index: at for index, at in group.due.items() if index < count}

    def stop(self) -> None:
        """As the first signal does."""
        if not self.is_stopping:
            self._view.say("down: draining, callers first")
            self._stop(OK)

    # Events

    def _next_event(self) -> Event | None:
        asked_at, patience = self._clock(), self._patience()
        event = self._processes.get(patience)
        waited = self._clock() - asked_at
        if patience is not None and waited > patience + PAUSE:
            self._excuse(waited)
        return event

    def _handle(self, event: Event) -> None:
        match event:
            case Signalled(number):
                self._signalled(number)
            case Output(name, text, is_transient):
                self._view.line(name, text, is_transient=is_transient)
            case Asked():
                self._requests.take(event)
            case Changed(paths):
                self._changed(paths)
            case Noted(complaint):
                self._complain(*complaint.splitlines())
            case _ if event.replica not in self._replicas:
                pass  # left behind, and gone at last
            case OutOfMemory(name):
                self._failed(self._replicas[name], event.message)
            case Exited(name, status):
                self._exited(self._replicas[name], status)
            case _:
                self._told(self._replicas[event.replica], event)

    def _told(self, replica: Replica, event: Said) -> None:
        """What a replica says of itself."""
        replica.heard_at = self._clock()
        try:
            match event:
                case Described():
                    self._move(replica, Step.DESCRIBED)
                    self._described(replica, event)
                case Progress(_, phase, done, total):
                    self._move(replica, Step.PROGRESSED, phase=phase, done=done, total=total)
                case Waiting(_, handles):
                    self._move(replica, Step.WAITED, phase=f"waiting for {', '.join(handles)}")
                case Ready(_, addresses):
                    seconds = self._clock() - replica.started_at
                    self._move(replica, Step.READIED, phase=f"ready after {seconds:.1f} s")
                    self._ready(replica, addresses)
                case Load():
                    replica.load = event
                case Measured(_, samples):
                    replica.samples = samples
                case Loaded(_, files):
                    replica.files = frozenset(files)
                case Failed(_, message):
                    self._failed(replica, message)
                case Draining():
                    replica.has_served = replica.has_served or replica.ready_at is not None
                    self._move(replica, Step.DRAINED)
        except ProtocolError as error:
            self._failed(replica, f"broke the protocol of its control socket: {error}")

    def _described(self, replica: Replica, event: Described) -> None:
        specs, said = replica.launch.specs, (event, *event.companions)
        if len(specs) != len(said):
            raise ProtocolError(f"{len(said)} descriptions of {len(specs)} deployments")
        found = {
            spec.deployment: Description(each.contract, each.handles, each.batched)
            for spec, each in zip(specs, said, strict=True)
        }
        changed = {**self._descriptions, **found}
        if not self.is_serving:
            self._descriptions = {**changed, **self._descriptions}
            if len(self._descriptions) == len(self.graph.services):
                self._refuse_wrong_edges()
        elif changed != self._descriptions:
            problems = find_problems(self.graph, changed)
            if problems:
                self._failed(replica, "; ".join(problems))
            else:
                self._descriptions = changed

    def _refuse_wrong_edges(self) -> bool:
        problems = [] if self.is_stopping else find_problems(self.graph, self._descriptions)
        if problems:
            self._stop(GRAPH_WRONG, *problems)
        return bool(problems)

    def _ready(self, replica: Replica, addresses: tuple[str, ...]) -> None:
        if self.is_stopping or replica.is_leaving:
            return
        replica.ready_at = self._clock()
        group = self.groups[replica.unit]
        group.files = replica.files or group.files
        if self.graph.entry in group.unit.members:
            self._entry_addresses = addresses
        if self.is_serving:
            rival = group.rival(replica)
            if rival is not None:
                self._ask_to_stop(rival, self._limits.drain_timeout + EXIT_GRACE)
            self._publish(group)
        elif all(each.state is State.READY for each in self._replicas.values()):
            self.is_serving = True
            self._view.settle()
            self._announce()

    def _announce(self) -> None:
        graph, count = self.graph, len(self._replicas)
        at = next((each for each in self._entry_addresses if not each.startswith("unix:")), "no TCP address")
        replicas = f"{count} replica{'s' if count > 1 else ''}"
        self._view.say(f"ready: {graph.name} on {at} ({replicas}, {self._clock() - self._started_at:.1f} s)")
        if graph.entry in self._descriptions:
            contract = self._descriptions[graph.entry].contract
            self._view.say(f"call it: toolkit call METHOD '{{}}' --graph {graph.path}  (a method of {contract})")

    def _failed(self, replica: Replica, message: str) -> None:
        """It cannot start, or it talks nonsense."""
        if replica.state in (State.FAILED, State.STOPPED):
            return
        self._move(replica, Step.FAILED)
        self.groups[replica.unit].files |= replica.files
        if not self.is_serving or self.is_stopping:
            if self._exit_code is None and self._refuse_wrong_edges():
                return  # the graph file is at fault, and its sentence names the line
            self._stop(SERVICE_FAILED, f"{replica.name}: {message}")
            return
        is_news = not replica.is_leaving
        self._ask_to_stop(replica, STOP_GRACE)
        if is_news and replica.ready_at is not None:
            self._lose(replica, message)
        elif is_news:
            self._give_up(replica, message)

    def _exited(self, replica: Replica, status: int) -> None:
        replica.is_running = False
        was = replica.state
        self._move(replica, Step.EXITED if self._is_expected(replica, status) else Step.DIED)
        self._forget(replica)
        is_news = was is not State.FAILED and replica.state is State.FAILED and not replica.is_killed
        if status == DRAIN_INCOMPLETE and replica.is_leaving:
            self._cut_off(f"{replica.name}: calls were still in flight at the end of its drain, and were cut off")
        if self.is_stopping:
            if is_news:
                self._stop(SERVICE_FAILED, f"{replica.name}: {_obituary(was, status)}")
            self._drain_next_tier()
        elif not self.is_serving:
            self._stop(SERVICE_FAILED, f"{replica.name}: {_obituary(was, status)}")
        elif not replica.is_leaving:
            self._lose(replica, _obituary(was, status))
        elif is_news:
            self._complain(f"{replica.name}: {_obituary(was, status)}")
        if not self.is_stopping:
            self._publish(self.groups[replica.unit])

    def _is_expected(self, replica: Replica, status: int) -> bool:
        """SIGTERM ends a replica that had no time yet to catch it."""
        is_ours = replica.is_leaving and status == -signal.SIGTERM
        is_drained = replica.is_leaving and status == DRAIN_INCOMPLETE
        return status == 0 or is_drained or is_ours or (replica.is_killed and status == -signal.SIGKILL)

    def _signalled(self, number: int) -> None:
        name = _signal_name(number)
        if self._exit_code is None:
            self._view.say(f"{name}: draining, callers first; once more kills")
            self._stop(OK)
        else:
            self._view.say(f"{name} again: killing")
            self._exit_code = FORCED + number
            for replica in list(self._replicas.values()):
                self._kill(replica)

    def _changed(self, paths: tuple[str, ...]) -> None:
        """Replace the replicas that are made of these files."""
        if self.is_stopping:
            return
        names = ", ".join(Path(path).name for path in paths[:3]) + (" …" if len(paths) > 3 else "")
        files = [file for file in (self.graph.path, *self.graph.overrides) if str(file.resolve()) in paths]
        if files and self._load is not None:
            self._reload(files[0].name, self._load)
        touched = [group for group in self.groups.values() if not group.files.isdisjoint(paths)]
        if touched:
            self._view.say(f"{names} changed: replacing {', '.join(each.unit.label for each in touched)}")
            self.restart([each.name for each in touched])

    def _reload(self, file: str, load: Callable[[], Graph]) -> None:
        """Bring the graph to what its file says now, or leave all of it as it is."""
        try:
            graph = load()
            fixed = find_fixed(self.graph, graph)
            if fixed:
                self._view.say(f"{file} changed: {fixed} counts from the next toolkit up on, and the rest with it")
                return
            counts = {name: self._count(unit) for name, unit in graph.units.items()}
            touched = self._starts.adopt(graph, counts)
        except (GraphError, PlacementError) as error:
            self._complain(*str(error).splitlines(), f"{self.graph.name} goes on as it was")
            return
        resized = [group for group in self.groups.values() if group.target != counts[group.name]]
        news = [f"{counts[group.name]} of {group.name}, {group.target} before" for group in resized]
        self.graph = graph
        self._scalers = _make_scalers(graph, self._clock)
        for name, unit in graph.units.items():
            self.groups[name].unit = unit
        for group in resized:
            self._resize(group, counts[group.name])
        self.restart(touched)
        news += [f"replacing {', '.join(graph.units[name].label for name in touched)}"] if touched else []
        self._view.say(f"{file} changed: {'; '.join(news) or 'nothing that runs is different'}")

    def _count(self, unit: Unit) -> int:
        """How many replicas of it there should be: what `scale` has made of it stays, within what a changed file says."""
        group, said = self.groups[unit.name], unit.said.replicas
        return group.target if said == group.unit.said.replicas else min(max(group.target, said.min), said.max)

    # Replicas that are lost, replaced, too many or missing

    def _lose(self, replica: Replica, sentence: str) -> None:
        """It served, or its start was cut short: it comes back after a pause, but not for ever."""
        group = self.groups[replica.unit]
        rival = group.rival(replica)
        if rival is not None and replica.ready_at is None:
            self._give_up(replica, sentence)
            return
        if rival is not None:
            self._complain(f"{replica.name}: {sentence}; {rival.name} takes its place")
            return
        served = 0.0 if replica.ready_at is None else self._clock() - replica.ready_at
        restarts = group.restarts.setdefault(
            replica.index, Restarts(self._restarts, clock=self._clock, chance=self._chance)
        )
        delay = restarts.next_delay(served)
        if delay is None:
            spent = f"{self._restarts.budget} restarts within {self._restarts.period:g} s are spent"
            self._give_up(replica, f"{sentence}; {spent}")
        else:
            self._complain(f"{replica.name}: {sentence}; starts again in {delay:.1f} s")
            group.due[replica.index] = self._clock() + delay

    def _give_up(self, replica: Replica, sentence: str) -> None:
        """It is not started again. The graph goes on as long as each deployment has somebody who serves."""
        group = self.groups[replica.unit]
        rival = group.rival(replica)
        if replica.generation < group.generation:
            self._complain(f"{replica.name}: {sentence}")  # what has changed since is tried next
        elif rival is not None:
            group.refused = group.generation
            self._complain(f"{replica.name}: {sentence}", f"{rival.name} goes on serving")
        elif any(each.stays for each in group.replicas):
            group.lost.add(replica.index)
            self._complain(f"{replica.name}: {sentence}", f"{group.name} goes on with {len(group.serving)}")
        else:
            self._stop(SERVICE_FAILED, f"{replica.name}: {sentence}")

    def _mend(self) -> None:
        """Bring each unit a step nearer to what it should be."""
        if not self.is_serving:
            return
        if self._scalers and self._clock() >= self._scale_at:
            self._scale_by_calls()
        for group in self.groups.values():
            if self.is_stopping:
                return
            for replica in group.surplus:
                self._ask_to_stop(replica, self._limits.drain_timeout + EXIT_GRACE)
            for index in [] if self._is_emptying(group) else list(group.find_missing()):
                if self._clock() >= group.due.get(index, 0.0):
                    group.due.pop(index, None)
                    self._join(group, index)
            if group.unit.said.strategy == "recreate":
                for replica in group.outdated:
                    self._ask_to_stop(replica, self._limits.drain_timeout + EXIT_GRACE)
            elif group.outdated and group.serving == group.running:  # one at a time, until the one before is gone
                self._join(group, group.outdated[0].index)

    def _scale_by_calls(self) -> None:
        """As many replicas as the calls need, where the file leaves that open."""
        self._scale_at = self._clock() + SCALE_EVERY
        for name, scaler in self._scalers.items():
            group = self.groups[name]
            loads = [each.load for each in group.serving if each.load is not None]
            if not group.is_settled or not loads:
                continue
            demand = Demand(sum(load.running + load.queued for load in loads), max(load.wait for load in loads))
            count = scaler.decide(group.target, demand)
            if group.lost and count < group.target:
                continue  # fewer are there already, and who serves might leave for a place that was given up
            if count != group.target:
                before, calls = group.target, f"{demand.outstanding:g} calls, {demand.wait:.1f} s to wait"
                try:
                    self.scale({name: count})
                except PlacementError as error:
                    self._complain(f"{name}: {calls}, and no room for {count} replicas: {error}")
                else:
                    self._view.say(f"{name}: {count} replicas, {before} before ({calls})")

    def _is_emptying(self, group: Group) -> bool:
        """All must leave before a new one starts."""
        is_recreated = group.unit.said.strategy == "recreate" and group.refused < group.generation
        return is_recreated and any(each.generation < group.generation for each in group.running)

    def _join(self, group: Group, index: int) -> None:
        """Start a replica while others serve."""
        addresses = {name: found for each in self.groups.values() for name, found in each.addresses().items()}
        group.numbers[index] = group.numbers.get(index, 0) + 1
        replica = Replica(self._starts.another(group.name, index, group.numbers[index], addresses), group.generation)
        self._add(replica)
        try:
            self._spawn(replica)
        except OSError as error:
            self._move(replica, Step.FAILED)
            self._forget(replica)
            self._lose(replica, f"its process cannot be started: {error}")

    def _publish(self, group: Group) -> None:
        """Tell those who call it where it is now."""
        addresses = group.addresses()
        if addresses == group.told:
            return
        group.told = addresses
        calls = self._find_calls()
        for replica in self._replicas.values():
            is_new = replica.state is State.STARTING  # it may call others than those before it
            if replica.is_running and (is_new or group.name in calls[replica.unit]):
                self._processes.tell(replica.name, {"addresses": addresses})

    def _find_calls(self) -> Edges:
        """Between units, as far as they are described."""
        return find_calls(self.graph, find_edges(self.graph, self._descriptions))

    # Actions

    def _add(self, replica: Replica) -> Group:
        self._replicas[replica.name] = replica
        group = self.groups[replica.unit]
        group.replicas.append(replica)
        return group

    def _forget(self, replica: Replica) -> None:
        if self.is_serving:
            self._replicas.pop(replica.name, None)
            self.groups[replica.unit].replicas.remove(replica)

    def _spawn_all(self) -> None:
        for replica in self._replicas.values():
            if self._exit_code is not None:
                self._move(replica, Step.DRAINED)
                continue
            try:
                self._spawn(replica)
            except OSError as error:
                self._move(replica, Step.FAILED)
                self._stop(SERVICE_FAILED, f"{replica.name}: its process cannot be started: {error}")

    def _spawn(self, replica: Replica) -> None:
        replica.started_at = replica.heard_at = self._clock()
        replica.pid = self._processes.spawn(replica.name, replica.launch.spec, replica.launch.env)
        replica.is_running = True
        self._move(replica, Step.SPAWNED)

    def _stop(self, code: int, *complaints: str) -> None:
        """Begin to take everything down. What serves nobody goes at once; the rest drains tier by tier."""
        self._view.settle()
        self._complain(*complaints)
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
        for tier in find_tiers(self._find_calls()):
            running = [each for each in self._replicas.values() if each.is_running and each.unit in tier]
            for replica in running:
                if not replica.is_leaving:
                    self._ask_to_stop(replica, self._limits.drain_timeout + EXIT_GRACE)
            if running:
                return

    def _ask_to_stop(self, replica: Replica, grace: float) -> None:
        """Its callers are told first that it goes."""
        if replica.is_running and not replica.is_leaving:
            replica.has_served = replica.state in (State.READY, State.DRAINING)
            self._move(replica, Step.DRAINED)
            replica.kill_at = self._clock() + grace
            if not self.is_stopping:
                self._publish(self.groups[replica.unit])
                if self.groups[replica.unit].rival(replica) is not None:
                    self._processes.tell(replica.name, {"replaced": True})
            self._processes.terminate(replica.name)

    def _hang(self, replica: Replica) -> None:
        """Let it show where it is, then kill it."""
        self._move(replica, Step.HUNG)
        replica.kill_at = self._clock() + DUMP_GRACE
        self._publish(self.groups[replica.unit])
        self._processes.dump(replica.name)
        self._lose(
            replica,
            f"its event loop has not turned for {self._limits.hang_timeout:g} s (its stacks follow), and it is killed; "
            "run what blocks in a thread (asyncio.to_thread), or raise --hang-timeout",
        )

    def _kill(self, replica: Replica) -> None:
        if replica.is_running:
            replica.is_killed = True
            replica.kill_at = self._clock() + KILL_GRACE
            if replica.state is not State.HUNG:
                self._move(replica, Step.DRAINED)
            if not self.is_stopping:
                self._publish(self.groups[replica.unit])
            self._processes.kill(replica.name)

    def _cut_off(self, complaint: str) -> None:
        """Calls were lost, though not by a failure."""
        self._complain(complaint)
        self._exit_code = DRAIN_INCOMPLETE if self._exit_code == OK else self._exit_code

    def _complain(self, *sentences: str) -> None:
        for sentence in sentences:
            self._view.complain(sentence)

    # Time

    def _patience(self) -> float | None:
        """Seconds until something has to happen even if nobody says anything."""
        points = [point for replica in self._replicas.values() for point in self._points(replica)]
        if not self.is_stopping:
            able = [group for group in self.groups.values() if not self._is_emptying(group)]
            points += [due for group in able for due in group.due.values()]
            if self._scalers and self.is_serving:
                points.append(self._scale_at)
        if self._is_starting():
            points.append(self._start_by)
        waits = [max(0.0, point - self._clock()) for point in points]
        if self._view.interval is not None:
            waits.append(self._view.interval)
        return min(waits, default=None)

    def _points(self, replica: Replica) -> Iterator[float]:
        """When something is due for a replica."""
        if not replica.is_running:
            return
        if replica.kill_at is not None:
            yield replica.kill_at
        elif replica.state is State.READY and not self.is_stopping:
            yield replica.heard_at + LOAD_INTERVAL + self._limits.hang_timeout
        elif self.is_serving and not self.is_stopping:
            if replica.state is State.DRAINING:  # unasked; that is the last that it says
                yield replica.heard_at + self._limits.drain_timeout + EXIT_GRACE
            else:
                yield replica.started_at + self._limits.start_timeout

    def _check_clock(self, *, is_quiet: bool) -> None:
        """`is_quiet`: all that was said by now is heard."""
        self._view.tick()
        now = self._clock()
        if self._is_starting() and now >= self._start_by:
            self._stop(NOT_READY_IN_TIME, self._lateness())
        for replica in list(self._replicas.values()):
            if any(now >= point for point in self._points(replica)):
                if replica.is_leaving or replica.state is State.DRAINING:
                    self._overdue(replica)
                elif replica.state is not State.READY:
                    self._failed(replica, f"not ready after {self._limits.start_timeout:g} s")
                elif is_quiet:
                    self._hang(replica)

    def _excuse(self, seconds: float) -> None:
        """The launcher itself did not run for so long: nobody else is to blame for that."""
        self._start_by += seconds
        for replica in self._replicas.values():
            replica.heard_at += seconds
            replica.started_at += seconds if replica.state is not State.READY else 0.0
            replica.kill_at = None if replica.kill_at is None else replica.kill_at + seconds

    def _overdue(self, replica: Replica) -> None:
        if replica.is_killed:
            self._complain(f"{replica.name}: does not die even of SIGKILL; left behind")
            replica.is_running = False
            self._forget(replica)
            if self.is_stopping:
                self._exit_code = self._exit_code or DRAIN_INCOMPLETE
                self._drain_next_tier()
            return
        if replica.has_served:
            self._cut_off(f"{replica.name}: still busy after {self._limits.drain_timeout:g} s of draining; killed")
        self._kill(replica)

    def _is_starting(self) -> bool:
        return not self.is_serving and self._exit_code is None

    def _lateness(self) -> str:
        late = [f"{each.name} ({each.row.text})" for each in self._replicas.values() if each.state is not State.READY]
        return (
            f"not ready after {self._limits.start_timeout:g} s: {', '.join(late)}; "
            "raise --start-timeout if it needs longer"
        )

    # State

    def _move(
        self, replica: Replica, step: Step, *, phase: str = "", done: float = 0, total: float | None = None
    ) -> None:
        replica.state = advance(replica.state, step)
        row = Row(state=replica.state.value, phase=phase, done=done, total=total)
        if row != replica.row:
            replica.row = row
            self._view.show(replica.name, row)


def _make_scalers(graph: Graph, clock: Callable[[], float]) -> dict[str, Scaler]:
    """Of the units whose number the file leaves open."""
    return {
        name: Scaler(unit.said.replicas.min, unit.said.replicas.max, _capacity(unit), clock=clock)
        for name, unit in graph.units.items()
        if unit.said.replicas.min < unit.said.replicas.max
    }


def _capacity(unit: Unit) -> int:
    """Calls that one process of it executes at once."""
    return sum(each.traffic.max_concurrency or CAPACITY for each in unit.members.values())


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
