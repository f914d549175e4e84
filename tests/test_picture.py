"""A graph as text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from toolkit.launcher.edges import Description
from toolkit.launcher.manifest import Deployment, Graph, Remote
from toolkit.launcher.picture import draw

GRAPH = Graph(
    path=Path("graph.yaml"),
    name="g",
    entry="top",
    services={
        "leaf": Deployment(service="m:Leaf"),
        "mid-1": Deployment(service="m:Mid"),
        "top": Deployment(service="m:Top", bind={"middle": "mid-1"}),
        "alone": Deployment(service="m:Leaf"),
    },
    remotes={"far": Remote(url="dns:///far:1")},
)
SAID = {
    "leaf": Description("t.v1.Leaf", {}),
    "mid-1": Description("t.v1.Mid", {"leaf": "t.v1.Leaf", "far": "t.v1.Far"}),
    "top": Description("t.v1.Top", {"middle": "t.v1.Mid", "leaf": "t.v1.Leaf"}),
    "alone": Description("t.v1.Leaf", {}),
}


def test_a_tree_begins_at_the_entry() -> None:
    assert draw(GRAPH, SAID, "ascii").splitlines() == [
        "top  t.v1.Top on 127.0.0.1:50051",
        "├─ middle → mid-1  t.v1.Mid",
        "│  ├─ leaf  t.v1.Leaf",
        "│  └─ far  dns:///far:1",
        "└─ leaf  t.v1.Leaf",
        "alone  t.v1.Leaf",
    ]


def test_mermaid_and_dot() -> None:
    mermaid = draw(GRAPH, SAID, "mermaid").splitlines()
    assert mermaid[0] == "flowchart LR"
    assert '  n_mid_1["mid-1"]' in mermaid
    assert "  n_top -->|middle| n_mid_1" in mermaid
    assert "  n_top --> n_leaf" in mermaid
    dot = draw(GRAPH, SAID, "dot").splitlines()
    assert '  "top" -> "mid-1" [label="middle"];' in dot
    assert dot[-1] == "}"


def test_json_holds_every_edge() -> None:
    found = json.loads(draw(GRAPH, SAID, "json"))
    assert found["entry"] == "top"
    assert {"caller": "top", "handle": "middle", "callee": "mid-1"} in found["edges"]
    assert len(found["edges"]) == 4
    assert {"name": "far", "url": "dns:///far:1"} in found["deployments"]


def test_a_shared_process_is_drawn_around_its_deployments() -> None:
    services = {
        name: replace(each, process="pair" if name in ("leaf", "top") else None)
        for name, each in GRAPH.services.items()
    }
    graph = replace(GRAPH, services=services)
    assert draw(graph, SAID, "ascii").splitlines()[0] == "top  t.v1.Top in process pair on 127.0.0.1:50051"
    mermaid = draw(graph, SAID, "mermaid").splitlines()
    assert mermaid[mermaid.index('  subgraph p_n_pair["pair"]') :][1:4] == ["    n_top", "    n_leaf", "  end"]
    assert '  subgraph "cluster_pair" { label="pair"; "top"; "leaf"; }' in draw(graph, SAID, "dot").splitlines()
    deployments = json.loads(draw(graph, SAID, "json"))["deployments"]
    assert {"name": "leaf", "contract": "t.v1.Leaf", "process": "pair"} in deployments
