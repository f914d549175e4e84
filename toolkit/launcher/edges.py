"""The graph's edges, as the classes declare them: what is wrong with them, and who has to stop first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from toolkit.errors import GraphError
from toolkit.launcher.hints import near
from toolkit.launcher.manifest import Graph


@dataclass(frozen=True, slots=True)
class Description:
    """What a class says of itself once it is imported."""

    contract: str
    """Full name of the service that it implements."""
    handles: Mapping[str, str]
    """Handle → full name of the service that it expects there."""
    batched: Mapping[str, str] = field(default_factory=dict)
    """Its batched methods: name in the class → name in the .proto."""


Edges = Mapping[str, tuple[str, ...]]
"""Deployment → the deployments that it calls."""


def target(graph: Graph, deployment: str, handle: str) -> str:
    """The deployment that a handle reaches: the one of its name, or the one that `bind` says."""
    return graph.services[deployment].bind.get(handle, handle)


def find_edges(graph: Graph, descriptions: Mapping[str, Description]) -> dict[str, tuple[str, ...]]:
    """The edges between deployments that run here. A deployment that is not described yet has none."""
    found = {}
    for name in graph.services:
        handles = descriptions[name].handles if name in descriptions else ()
        targets = dict.fromkeys(target(graph, name, handle) for handle in handles)
        found[name] = tuple(each for each in targets if each in graph.services)
    return found


def find_calls(graph: Graph, edges: Edges) -> dict[str, tuple[str, ...]]:
    """Unit → the other units that its members call."""
    home = {member: name for name, unit in graph.units.items() for member in unit.members}
    return {
        name: tuple(
            dict.fromkeys(
                home[callee] for member in unit.members for callee in edges.get(member, ()) if home[callee] != name
            )
        )
        for name, unit in graph.units.items()
    }


def select(graph: Graph, names: Sequence[str], edges: Edges) -> Graph:
    """The graph of these deployments and all that they call by `edges`; what they call beyond that is absent. Raises
    GraphError for a name that is not there.
    """
    unknown = [name for name in names if name not in graph.services]
    if unknown:
        known = near(unknown[0], graph.services) or "there are " + ", ".join(graph.services)
        raise GraphError(f"{graph.path}: no deployment is named {unknown[0]!r}; {known}")
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        wanted += [callee for callee in edges.get(name, ()) if callee not in wanted]
    services = {name: each for name, each in graph.services.items() if name in wanted}
    return replace(graph, services=services, absent=tuple(name for name in graph.services if name not in wanted))


def find_problems(graph: Graph, descriptions: Mapping[str, Description]) -> list[str]:
    """Every edge that cannot work: `file:line: services.graph: what, and the cure`. Those unknown yet are left out."""
    found: list[str] = []
    for name, description in descriptions.items():
        found += _check_bind(graph, name, description)
        found += _check_batching(graph, name, description)
        for handle, contract in description.handles.items():
            found += _check_handle(graph, descriptions, name, handle, contract)
    edges = find_edges(graph, descriptions)
    cycles = [_cycle_sentence(graph, cycle) for cycle in find_cycles(edges)]
    return found + (cycles or [_knot_sentence(graph, cycle) for cycle in find_cycles(find_calls(graph, edges))])


def _check_bind(graph: Graph, name: str, description: Description) -> Iterator[str]:
    for handle in graph.services[name].bind:
        if handle not in description.handles:
            known = ", ".join(description.handles) or "none"
            hint = near(handle, description.handles) or f"its handles: {known}"
            yield f"{graph.where('services', name, 'bind', handle)}: {_class(graph, name)} has no such handle; {hint}"


def _check_batching(graph: Graph, name: str, description: Description) -> Iterator[str]:
    known = (*description.batched, *description.batched.values())
    for method in graph.services[name].batching:
        if method not in known:
            hint = near(method, known) or f"those it has: {', '.join(description.batched) or 'none'}"
            where = graph.where("services", name, "batching", method)
            yield f"{where}: {_class(graph, name)} has no such batched method, decorated with @batched; {hint}"


def _check_handle(
    graph: Graph, descriptions: Mapping[str, Description], name: str, handle: str, contract: str
) -> Iterator[str]:
    callee = target(graph, name, handle)
    where = graph.where("services", name)
    if callee in graph.absent or callee in graph.remotes or _is_program(graph, callee):
        return  # what it serves is seen when it is called
    if callee not in graph.services:
        yield (
            f"{where}: {_class(graph, name)} has the handle {handle!r} and no deployment is named so; "
            f"{_cure(graph, descriptions, handle, contract)}"
        )
    elif callee in descriptions and descriptions[callee].contract != contract:
        yield (
            f"{where}: the handle {handle!r} expects {contract} and the deployment {callee!r} serves "
            f"{descriptions[callee].contract}; {_cure(graph, descriptions, handle, contract)}"
        )


def _is_program(graph: Graph, name: str) -> bool:
    return name in graph.services and bool(graph.services[name].command)


def _cure(graph: Graph, descriptions: Mapping[str, Description], handle: str, contract: str) -> str:
    fitting = [name for name, each in descriptions.items() if each.contract == contract]
    if fitting:
        return f"bind it to one that serves {contract}: bind: {{{handle}: {fitting[0]}}}"
    known = (*graph.services, *graph.remotes)
    hint = "" if handle in known else near(handle, known)
    return f"add a deployment that serves {contract}" + (f" ({hint})" if hint else "")


def _class(graph: Graph, name: str) -> str:
    return graph.services[name].service


def _cycle_sentence(graph: Graph, cycle: tuple[str, ...]) -> str:
    path = " → ".join((*cycle, cycle[0]))
    return f"{graph.where('services', cycle[0])}: a cycle of handles: {path}; a graph has none, so take one handle out"


def _knot_sentence(graph: Graph, cycle: tuple[str, ...]) -> str:
    shared = next(name for name in cycle if len(graph.units[name].members) > 1)
    path = " → ".join((*cycle, cycle[0]))
    where = graph.where("services", next(iter(graph.units[shared].members)), "process")
    others = ", ".join(name for name in cycle if name != shared)
    return (
        f"{where}: a cycle of processes: {path}; callers stop before those that they call, so let {others} be in "
        f"{shared!r} too, or take one of its members out"
    )


def find_cycles(edges: Edges) -> list[tuple[str, ...]]:
    """One cycle for each knot of deployments that call one another, in the order of the graph file."""
    found: list[tuple[str, ...]] = []
    knotted: set[str] = set()
    for name in edges:
        cycle = None if name in knotted else _way(edges, name, name)
        if cycle is not None:
            found.append(cycle)
            knotted |= {each for each in edges if _way(edges, name, each) and _way(edges, each, name)}
    return found


def _way(edges: Edges, start: str, end: str) -> tuple[str, ...] | None:
    """The shortest way along at least one edge, `end` left out."""
    ways: list[tuple[str, ...]] = [(start,)]
    seen: set[str] = set()
    for way in ways:
        for callee in edges[way[-1]]:
            if callee == end:
                return way
            if callee not in seen:
                seen.add(callee)
                ways.append((*way, callee))
    return None


def find_tiers(edges: Edges) -> list[tuple[str, ...]]:
    """Callers before callees: a deployment stands in a later tier than everything that calls it.

    What hangs in a cycle comes last, together.
    """
    left = dict(edges)
    tiers: list[tuple[str, ...]] = []
    while left:
        called = {callee for name, callees in left.items() for callee in callees if callee != name}
        tier = tuple(name for name in left if name not in called) or tuple(left)
        tiers.append(tier)
        for name in tier:
            del left[name]
    return tiers
