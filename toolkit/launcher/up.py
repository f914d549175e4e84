"""`toolkit up`: graph file → plan → processes. Here the real clock, processes and terminal are handed to the supervisor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal, TextIO

from toolkit.errors import ConflictError, NotRunningError, StartError
from toolkit.launcher.addresses import (
    choose_address,
    choose_addresses,
    pick_free_port,
    pick_port_where_needed,
    runtime_folder,
)
from toolkit.launcher.desk import Desk, ask
from toolkit.launcher.devices import Machine
from toolkit.launcher.edges import find_edges
from toolkit.launcher.fleet import Addresses, Launch
from toolkit.launcher.folder import project_folder
from toolkit.launcher.fuse import Fused, fuse, fuse_all
from toolkit.launcher.guardian import guarded
from toolkit.launcher.inspector import check_edges
from toolkit.launcher.manifest import Deployment, Graph
from toolkit.launcher.output import PlainView, QuietView, View, wants_colour
from toolkit.launcher.placement import Placed, describe, describe_machine, place
from toolkit.launcher.ports import held_ports
from toolkit.launcher.processes import COMMAND, Processes
from toolkit.launcher.record import LimitedFile, Record, Views
from toolkit.launcher.security import join
from toolkit.launcher.specify import specify
from toolkit.launcher.state import Run, announce, claimed
from toolkit.launcher.supervisor import SERVICE_FAILED, Limits, Supervisor
from toolkit.launcher.trust import Trust, needs_edges, plan_trust
from toolkit.launcher.waiting import make_view
from toolkit.metrics import read_samples, render
from toolkit.scrape import served
from toolkit.spec import ReplicaSpec

Style = Literal["full", "quiet", "json"]
"""What is shown: everything, errors alone, or each event as a line of JSON."""

Shared = Mapping[str, Sequence[str]]
"""Process → its deployments, where these are several."""

Watch = Callable[[Path, Processes, Mapping[str, str]], AbstractContextManager[None]]
"""`watch.watched`: (folder, where events go, environment) → a block in which changes are events."""


def up(
    graph: Graph,
    machine: Machine,
    limits: Limits,
    *,
    stream: TextIO,
    environ: Mapping[str, str],
    style: Style = "full",
    watch: Watch | None = None,
    load: Callable[[], Graph] | None = None,
    metrics: str = "",
    command: Sequence[str] = COMMAND,
) -> int:
    """Run a graph until it is stopped. Returns the exit code.

    Before anything starts it raises GraphError, PlacementError, RunningError where it is up already, and ConflictError where
    a port or a folder is somebody else's. With `watch`, replicas are replaced when their files change, and when the graph
    file does, which `load` reads again. `metrics`: `HOST:PORT`
    where those of all replicas are served for Prometheus; empty: nowhere.
    """
    placed = place(graph, machine)
    imports = stream if style == "full" else None
    trust = plan_trust(graph, find_edges(graph, check_edges(graph, imports, environ)) if needs_edges(graph) else {})
    with (
        Processes(project_folder(graph.path), command=command, environ=environ) as processes,  # signals are caught
        claimed(graph.path, environ) as state,
        held_ports(_ports(graph)),
        runtime_folder(environ) as folder,
        guarded(processes.mark, folder),
        closing(LimitedFile(state)) as log,
    ):
        desk = Desk(folder / "control.sock", processes)
        starts = Starts(
            graph,
            machine,
            placed,
            folder,
            limits,
            trust,
            reports_files=watch is not None,
            reports_metrics=bool(metrics),
        )
        shared = {unit.name: tuple(unit.members) for unit in graph.units.values() if len(unit.members) > 1}
        wholes = [each.whole for each in fuse_all(graph, placed)]
        shown = _make_view(wholes, shared, stream, environ, style)
        view = Views(shown, Record(log, time.time, shown.complain, shared=shared))
        _show_plan(view, machine, wholes)
        if any(each.memory is not None for each in placed):
            view.say(processes.how_memory_is_limited)
        supervisor = Supervisor(
            graph,
            starts.first(),
            starts=starts,
            limits=limits,
            processes=processes,
            view=view,
            clock=time.monotonic,
            answer=desk.answer,
            load=load,
        )
        announce(state, Run(pid=os.getpid(), name=graph.name, path=str(graph.path.resolve()), socket=desk.path))
        code = SERVICE_FAILED
        try:
            with (
                watch(project_folder(graph.path), processes, environ) if watch else nullcontext(),
                _served_metrics(metrics, desk.path, view),
            ):
                code = supervisor.run()
        finally:
            view.settle()
            desk.close(code)
        return code


@contextmanager
def _served_metrics(address: str, desk: str, view: View) -> Iterator[None]:
    """Who reads them is one more client of the desk."""
    with ExitStack() as stack:
        if address:
            try:
                where = stack.enter_context(served(address, lambda: _read_metrics(desk)))
            except StartError as error:
                raise ConflictError(f"metrics: {error}") from None
            view.say(f"metrics on http://{where}/metrics")
        yield


def _read_metrics(desk: str) -> str:
    """Nothing where the graph goes down this moment."""
    try:
        said = ask(desk, {"do": "metrics"}).get("said", ())
    except NotRunningError:
        said = ()
    return render(({"replica": name} if name else {}, read_samples(samples)) for name, samples in said)


def show_plan(graph: Graph, machine: Machine, *, stream: TextIO, environ: Mapping[str, str]) -> None:
    """What `up` would start, and on what. Raises PlacementError."""
    wholes = [each.whole for each in fuse_all(graph, place(graph, machine))]
    is_coloured = wants_colour(stream, environ)
    names = [each.name for each in wholes]
    _show_plan(PlainView(stream, names, is_coloured=is_coloured, clock=time.monotonic), machine, wholes)


def _show_plan(view: View, machine: Machine, processes: Sequence[Placed]) -> None:
    for line in describe_machine(machine):
        view.say(line)
    for each in processes:
        view.line(each.name, describe(each))


def _ports(graph: Graph) -> Iterator[tuple[str, str, int]]:
    for name in graph.services:
        port = graph.port(name)
        if port is not None:
            yield graph.where("services", name, "port"), graph.host(name), port


class Starts:
    """The replicas' specifications, those included that come later."""

    def __init__(
        self,
        graph: Graph,
        machine: Machine,
        placed: Sequence[Placed],
        folder: Path,
        limits: Limits,
        trust: Mapping[str, Trust],
        *,
        reports_files: bool = False,
        reports_metrics: bool = False,
    ) -> None:
        self._reports_files = reports_files
        self._reports_metrics = reports_metrics
        self._graph = graph
        self._machine = machine
        self._placed = {(each.deployment, each.index): each for each in placed}
        self._folder = folder
        self._limits = limits
        self._trust = trust
        self._programs = [name for name, each in graph.services.items() if each.command]
        """Not every program can listen on a Unix socket."""

    def first(self) -> list[Launch]:
        """Those that start together: every address is known before the first process starts."""
        placed = list(self._placed.values())
        addresses = choose_addresses(placed, self._folder, pick_port=pick_port_where_needed(), on_tcp=self._programs)
        return [
            self._launch(
                each, 1, {one.deployment: addresses[one.deployment][one.index] for one in each.members}, addresses
            )
            for each in fuse_all(self._graph, placed)
        ]

    def plan(self, counts: Mapping[str, int]) -> None:
        """Find places for so many replicas of each of these units. Raises PlacementError where there are none."""
        of_each = {member: count for unit, count in counts.items() for member in self._graph.units[unit].members}
        kept = [each for (name, index), each in self._placed.items() if name not in of_each or index < of_each[name]]
        all_counts = {**dict.fromkeys(self._graph.services, 0), **of_each}
        placed = place(self._graph, self._machine, counts=all_counts, kept=kept)
        self._placed = {(each.deployment, each.index): each for each in placed}

    def adopt(self, graph: Graph, counts: Mapping[str, int]) -> list[str]:
        """From now on replicas are those of this graph: of each unit so many. Returns the units whose replicas are others
        than before, for what is said of one may be told to its callers too. Raises PlacementError where there are no places.
        """
        of_each = {member: counts[name] for name, unit in graph.units.items() for member in unit.members}
        kept = [
            each
            for each in self._placed.values()
            if each.index < of_each[each.deployment]
            and _asks(self._graph.services[each.deployment]) == _asks(graph.services[each.deployment])
        ]
        placed = place(graph, self._machine, counts=of_each, kept=kept)
        before = self._tell()
        self._graph = graph
        self._placed = {(each.deployment, each.index): each for each in placed}
        after = self._tell()
        touched = {name for name, index in before.keys() & after.keys() if before[name, index] != after[name, index]}
        return [name for name, unit in graph.units.items() if not touched.isdisjoint(unit.members)]

    def _tell(self) -> dict[tuple[str, int], tuple[Placed, ReplicaSpec]]:
        """All that makes each replica what it is, but for addresses."""
        return {key: (each, self._specify(each, "", {}, joins=False)) for key, each in self._placed.items()}

    def another(self, unit: str, index: int, number: int, addresses: Addresses) -> Launch:
        """One that joins those that serve: the `number`-th in its place."""
        members = [self._placed[member, index] for member in self._graph.units[unit].members]
        own = {
            each.deployment: choose_address(each, number, self._folder, pick_port=self._port_picker(each.deployment))
            for each in members
        }
        return self._launch(fuse(self._graph, unit, members), number, own, addresses, joins=True)

    def _port_picker(self, deployment: str) -> Callable[[], int] | None:
        return pick_free_port if deployment in self._programs else pick_port_where_needed()

    def _launch(
        self, fused: Fused, number: int, own: Mapping[str, str], addresses: Addresses, *, joins: bool = False
    ) -> Launch:
        """`own`: where each that runs in it listens."""
        unit, whole = fused.whole.deployment, fused.whole
        spec = fused.spec([self._specify(each, own[each.deployment], addresses, joins=joins) for each in fused.members])
        name = f"{unit}.{whole.index}" if whole.index else whole.name  # the first may have been the only one
        return Launch(name=name if number == 1 else f"{name}#{number}", unit=unit, spec=spec, env=whole.env)

    def _specify(self, placed: Placed, own: str, addresses: Addresses, *, joins: bool) -> ReplicaSpec:
        name, port = placed.deployment, self._graph.port(placed.deployment)
        listen = (own, *([join(self._graph.host(name), port)] if port else []))
        known = {**dict.fromkeys(self._graph.absent, ()), **addresses}
        return replace(
            specify(self._graph, name, listen=listen, addresses=known, trust=self._trust[name]),
            replica=placed.index,
            gpu_memory=None if placed.gpu is None else self._graph.services[name].resources.gpu_memory,
            start_timeout=self._limits.start_timeout,
            drain_timeout=self._limits.drain_timeout,
            joins=joins,
            shares_ports=True,
            reports_files=self._reports_files,
            reports_metrics=self._reports_metrics,
        )


def _asks(said: Deployment) -> tuple[object, ...]:
    """What its placement follows from."""
    return said.device, said.on_unsatisfiable, said.resources, said.env


def _make_view(
    processes: Sequence[Placed], shared: Shared, stream: TextIO, environ: Mapping[str, str], style: Style
) -> View:
    if style == "json":
        return Record(stream, time.time, shared=shared)
    names = [each.name for each in processes]
    if style == "quiet":
        return QuietView(stream, names, is_coloured=wants_colour(stream, environ), clock=time.monotonic)
    return make_view(stream, names, environ)
