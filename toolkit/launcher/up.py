"""`toolkit up`: graph file → plan → processes. Here the real clock, processes and terminal are handed to the supervisor."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from toolkit.launcher.addresses import choose_addresses, pick_port_where_needed, runtime_folder
from toolkit.launcher.devices import Machine
from toolkit.launcher.edges import find_edges
from toolkit.launcher.folder import project_folder
from toolkit.launcher.inspector import check_edges
from toolkit.launcher.live import LiveView
from toolkit.launcher.manifest import Graph
from toolkit.launcher.output import PlainView, View, is_terminal, wants_colour
from toolkit.launcher.placement import Placed, describe, describe_machine, place
from toolkit.launcher.processes import COMMAND, Processes
from toolkit.launcher.security import join
from toolkit.launcher.specify import specify
from toolkit.launcher.supervisor import Launch, Limits, Supervisor
from toolkit.launcher.trust import Trust, needs_edges, plan_trust
from toolkit.spec import ReplicaSpec


def up(
    graph: Graph,
    machine: Machine,
    limits: Limits,
    *,
    stream: TextIO,
    environ: Mapping[str, str],
    command: Sequence[str] = COMMAND,
) -> int:
    """Run a graph until it is stopped. Returns the exit code. Raises GraphError, PlacementError before anything starts."""
    placed = place(graph, machine)
    trust = plan_trust(graph, find_edges(graph, check_edges(graph)) if needs_edges(graph) else {})
    with (
        Processes(
            project_folder(graph.path), command=command, environ=environ
        ) as processes,  # signals are caught to the end
        runtime_folder(environ) as folder,
    ):
        launches = plan_launches(graph, placed, folder, limits, trust)
        view = _make_view(machine, placed, stream, environ)
        if any(each.memory is not None for each in placed):
            view.say(processes.how_memory_is_limited)
        supervisor = Supervisor(graph, launches, limits=limits, processes=processes, view=view, clock=time.monotonic)
        try:
            return supervisor.run()
        finally:
            view.settle()


def show_plan(graph: Graph, machine: Machine, *, stream: TextIO, environ: Mapping[str, str]) -> None:
    """What `up` would start, and on what. Raises PlacementError."""
    placed = place(graph, machine)
    is_coloured = wants_colour(stream, environ)
    names = [each.name for each in placed]
    _show_plan(PlainView(stream, names, is_coloured=is_coloured, clock=time.monotonic), machine, placed)


def _show_plan(view: View, machine: Machine, placed: Sequence[Placed]) -> None:
    for line in describe_machine(machine):
        view.say(line)
    for each in placed:
        view.line(each.name, describe(each))


def plan_launches(
    graph: Graph, placed: Sequence[Placed], folder: Path, limits: Limits, trust: Mapping[str, Trust]
) -> list[Launch]:
    """The replicas' specifications: every address is known before the first process starts."""
    addresses = choose_addresses(placed, folder, pick_port=pick_port_where_needed())
    return [
        Launch(name=each.name, spec=_specify(graph, each, addresses, limits, trust[each.deployment]), env=each.env)
        for each in placed
    ]


def _specify(
    graph: Graph, placed: Placed, addresses: Mapping[str, tuple[str, ...]], limits: Limits, trust: Trust
) -> ReplicaSpec:
    name, port = placed.deployment, graph.port(placed.deployment)
    listen = (addresses[name][placed.index], *([join(graph.host(name), port)] if port else []))
    return replace(
        specify(graph, name, listen=listen, addresses=addresses, trust=trust),
        replica=placed.index,
        device=placed.device,
        cores=placed.cores,
        memory=placed.memory,
        start_timeout=limits.start_timeout,
        drain_timeout=limits.drain_timeout,
    )


def _make_view(machine: Machine, placed: Sequence[Placed], stream: TextIO, environ: Mapping[str, str]) -> View:
    names = [each.name for each in placed]
    kind = LiveView if is_terminal(stream, environ) else PlainView
    plan = PlainView(stream, names, is_coloured=wants_colour(stream, environ), clock=time.monotonic)
    _show_plan(plan, machine, placed)
    return kind(stream, names, is_coloured=wants_colour(stream, environ), clock=time.monotonic)
