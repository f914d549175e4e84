"""Replicas of several deployments → one process with all of them. Pure; refuses what one process cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.errors import GraphError
from toolkit.launcher.manifest import Graph
from toolkit.launcher.placement import THREAD_VARIABLES, VISIBLE_VARIABLES, Placed
from toolkit.spec import ReplicaSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """One process, and what it got."""

    spec: ReplicaSpec
    """Of the first deployment; the others are its companions."""
    env: Mapping[str, str]


def fuse(graph: Graph, placed: Sequence[Placed], specs: Sequence[ReplicaSpec]) -> Fused:
    """One process of these replicas, the first of which speaks for it. It sees the GPUs of all, and has the threads and cores of
    all. Raises GraphError where two want different values of one variable.
    """
    gpus = tuple(dict.fromkeys(each.gpu for each in placed if each.gpu is not None))
    cores = (
        ()
        if any(not each.cores for each in placed)
        else tuple(sorted({core for each in placed for core in each.cores}))
    )
    memory = None if any(each.memory is None for each in placed) else sum(each.memory or 0 for each in placed)
    members = [replace(spec, device=_device(each, gpus)) for each, spec in zip(placed, specs, strict=True)]
    return Fused(
        spec=replace(members[0], companions=tuple(members[1:]), cores=cores, memory=memory),
        env=_environment(graph, placed, gpus),
    )


def _device(placed: Placed, gpus: Sequence[str]) -> str:
    """As the process names it, which sees more GPUs than this replica alone would."""
    return placed.device if placed.gpu is None or placed.device == "mps" else f"cuda:{gpus.index(placed.gpu)}"


def _environment(graph: Graph, placed: Sequence[Placed], gpus: Sequence[str]) -> dict[str, str]:
    own = _own(graph, placed)
    found: dict[str, str] = {}
    for variable, value in (pair for each in placed for pair in each.env.items()):
        if variable in THREAD_VARIABLES and variable not in own:
            found[variable] = str(int(found.get(variable, "0")) + int(value))
        elif variable in VISIBLE_VARIABLES and gpus:
            found[variable] = ",".join(gpus)
        else:
            found.setdefault(variable, value)
    return {**found, **own}


def _own(graph: Graph, placed: Sequence[Placed]) -> dict[str, str]:
    """What the graph file says. Raises GraphError where two disagree."""
    found: dict[str, str] = {}
    said_by: dict[str, str] = {}
    problems = []
    for each in placed:
        for variable, value in graph.services[each.deployment].env.items():
            if found.setdefault(variable, value) != value:
                problems.append(_conflict(graph, each.deployment, variable, said_by[variable]))
            said_by.setdefault(variable, each.deployment)
    if problems:
        raise GraphError("\n".join(problems))
    return found


def _conflict(graph: Graph, name: str, variable: str, other: str) -> str:
    where = graph.where(*graph.said_at(name, "env", variable))
    return f"{where}: {other!r} says another value, and they share one process, which has one environment"
