"""A graph as text: a tree for a terminal, mermaid, dot, or JSON. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Literal

from toolkit.launcher.edges import Description, target
from toolkit.launcher.manifest import Deployment, Graph, Unit

Format = Literal["ascii", "mermaid", "dot", "json"]
Arrow = tuple[str, str, str]
"""(caller, handle, callee)."""


def draw(graph: Graph, descriptions: Mapping[str, Description], style: Format) -> str:
    """The deployments, what they serve, and who calls whom by which handle."""
    nodes = [*graph.services, *graph.remotes]
    arrows = [
        (name, handle, target(graph, name, handle)) for name in graph.services for handle in descriptions[name].handles
    ]
    match style:
        case "ascii":
            return "\n".join(_tree(graph, descriptions, nodes, arrows))
        case "mermaid":
            return "\n".join(_mermaid(graph, nodes, arrows))
        case "dot":
            return "\n".join(_dot(graph, nodes, arrows))
        case "json":
            return json.dumps(_plain(graph, descriptions, arrows), indent=2)


def _tree(
    graph: Graph, descriptions: Mapping[str, Description], nodes: list[str], arrows: list[Arrow]
) -> Iterator[str]:
    """The entry first; what nobody calls stands beside it. Who was drawn already is named only."""
    called = {callee for _, _, callee in arrows}
    roots = [graph.entry, *(node for node in nodes if node not in called and node != graph.entry)]
    drawn: set[str] = set()

    def branch(node: str, label: str, first: str, rest: str) -> Iterator[str]:
        below = [(handle, callee) for caller, handle, callee in arrows if caller == node]
        if node in drawn and below:
            yield f"{first}{label} (above)"
            return
        drawn.add(node)
        yield f"{first}{label}  {_serves(graph, descriptions, node)}".rstrip()
        for number, (handle, callee) in enumerate(below, 1):
            is_last = number == len(below)
            name = callee if handle == callee else f"{handle} → {callee}"
            yield from branch(callee, name, rest + ("└─ " if is_last else "├─ "), rest + ("   " if is_last else "│  "))

    for root in roots:
        yield from branch(root, root, "", "")


def _serves(graph: Graph, descriptions: Mapping[str, Description], node: str) -> str:
    if node in graph.remotes:
        return graph.remotes[node].url
    replicas = graph.services[node].replicas
    count = f"{replicas.min}" if replicas.min == replicas.max else f"{replicas.min} to {replicas.max}"
    several = "" if count == "1" else f" × {count}"
    port, process = graph.port(node), graph.services[node].process
    shared = f" in process {process}" if process else ""
    return descriptions[node].contract + several + shared + (f" on {graph.host(node)}:{port}" if port else "")


def _mermaid(graph: Graph, nodes: list[str], arrows: list[Arrow]) -> Iterator[str]:
    yield "flowchart LR"
    for node in nodes:
        yield f"  {_id(node)}{('(({}))' if node in graph.remotes else '[{}]').format(_quoted(node))}"
    for unit in _shared(graph):
        yield f"  subgraph p_{_id(unit.name)}[{_quoted(unit.name)}]"
        yield from (f"    {_id(node)}" for node in unit.members)
        yield "  end"
    for caller, handle, callee in arrows:
        label = "" if handle == callee else f"|{handle}|"
        yield f"  {_id(caller)} -->{label} {_id(callee)}"


def _shared(graph: Graph) -> list[Unit]:
    """The processes of several deployments."""
    return [unit for unit in graph.units.values() if len(unit.members) > 1]


def _process(said: Deployment) -> dict[str, str]:
    return {"process": said.process} if said.process else {}


def _id(node: str) -> str:
    return "n_" + node.replace("-", "_")


def _dot(graph: Graph, nodes: list[str], arrows: list[Arrow]) -> Iterator[str]:
    yield f"digraph {_quoted(graph.name)} {{"
    yield "  rankdir=LR;"
    for node in nodes:
        yield f"  {_quoted(node)} [shape={'ellipse' if node in graph.remotes else 'box'}];"
    for unit in _shared(graph):
        nodes_in_it = " ".join(f"{_quoted(node)};" for node in unit.members)
        yield f"  subgraph {_quoted(f'cluster_{unit.name}')} {{ label={_quoted(unit.name)}; {nodes_in_it} }}"
    for caller, handle, callee in arrows:
        label = "" if handle == callee else f" [label={_quoted(handle)}]"
        yield f"  {_quoted(caller)} -> {_quoted(callee)}{label};"
    yield "}"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _plain(graph: Graph, descriptions: Mapping[str, Description], arrows: list[Arrow]) -> dict[str, object]:
    return {
        "name": graph.name,
        "entry": graph.entry,
        "deployments": [
            *(
                {"name": name, "contract": descriptions[name].contract, **_process(each)}
                for name, each in graph.services.items()
            ),
            *({"name": name, "url": each.url} for name, each in graph.remotes.items()),
        ],
        "edges": [{"caller": caller, "handle": handle, "callee": callee} for caller, handle, callee in arrows],
    }
