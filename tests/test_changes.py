"""What of an edited graph file a graph that runs takes over, and whose replicas are others then."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from toolkit.errors import PlacementError
from toolkit.launcher.changes import LIVE, find_fixed
from toolkit.launcher.devices import Machine, parse_fake_gpus
from toolkit.launcher.manifest import Deployment, Graph, load_graph
from toolkit.launcher.placement import place
from toolkit.launcher.supervisor import Limits
from toolkit.launcher.trust import plan_trust
from toolkit.launcher.up import Starts

GRAPH = """
name: g
entry: front
services:
  model: {class: "m:Model", args: {size: 2}, resources: {gpu_memory: 10GiB}, device: cuda}
  other: {class: "m:Other"}
  front: {class: "m:Front"}
"""
LIMITS = Limits(start_timeout=60, drain_timeout=30)
MACHINE = Machine(cores=(0, 1), quota=None, memory=None, devices=parse_fake_gpus("1x24GiB"))


def load(folder: Path, *edits: tuple[str, str]) -> Graph:
    text = GRAPH
    for before, after in edits:
        assert before in text
        text = text.replace(before, after)
    (folder / "graph.yaml").write_text(text)
    return load_graph(folder / "graph.yaml")


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("name: g", "name: h", "name"),
        ("entry: front", "entry: other", "entry"),
        ('"m:Other"', '"m:Another"', "services.other.class"),
        ('class: "m:Other"', "command: [./other]", "services.other.class"),
        ('"m:Front"', '"m:Front", bind: {x: other}', "services.front.bind"),
        ('"m:Front"', '"m:Front", port: 50052', "services.front.port"),
        ('"m:Front"}', '"m:Front"}\n  more: {class: "m:More"}', "services"),
        ('"m:Front"}', '"m:Front"}\n  far: {url: "far:50051"}', "services"),
        ("name: g", "name: g\nmetrics: {}", "metrics"),
        ("name: g", "name: g\nforward: [x-user]", "forward"),
        ("size: 2", "size: 3", ""),
        ("name: g", "name: g\ndescription: says more # in other words", ""),
        ('"m:Other"', '"m:Other", env: {A: b}, replicas: 2, traffic: {timeout: 2s}, strategy: recreate', ""),
    ],
)
def test_what_a_graph_that_runs_cannot_take_over_is_named(tmp_path: Path, before: str, after: str, key: str) -> None:
    assert find_fixed(load(tmp_path), load(tmp_path, (before, after))) == key


def test_the_keys_that_count_at_once_are_keys_of_a_deployment() -> None:
    assert {field.name for field in fields(Deployment)} >= LIVE


def starts(folder: Path, graph: Graph) -> Starts:
    return Starts(graph, MACHINE, place(graph, MACHINE), folder, LIMITS, plan_trust(graph, {}))


@pytest.mark.parametrize(
    ("before", "after", "touched"),
    [
        ("size: 2", "size: 3", ["model"]),
        ('"m:Other"', '"m:Other", env: {A: b}', ["other"]),
        ("name: g", "name: g\nenv: {A: b}", ["model", "other", "front"]),
        ('"m:Other"', '"m:Other", traffic: {timeout: 2s}', ["other"]),
        ('"m:Other"', '"m:Other", resources: {memory: 1GiB}', ["other"]),
        ('"m:Other"', '"m:Other", replicas: 2', []),
        ('"m:Other"', '"m:Other", strategy: recreate', []),
        ("10GiB", "12GiB", ["model"]),
        ('"m:Other"', '"m:Other", traffic: {max_message: 1MiB}', ["model", "other", "front"]),
    ],
)
def test_those_are_touched_whose_replicas_are_told_something_else(
    tmp_path: Path, before: str, after: str, touched: list[str]
) -> None:
    """How large a message may be is told to callers too."""
    graph, edited = load(tmp_path), load(tmp_path, (before, after))
    counts = {name: unit.said.replicas.min for name, unit in edited.units.items()}
    assert starts(tmp_path, graph).adopt(edited, counts) == touched


def test_replicas_that_come_later_are_those_of_the_edited_file(tmp_path: Path) -> None:
    graph, edited = load(tmp_path), load(tmp_path, ("size: 2", "size: 3"), ('"m:Other"', '"m:Other", replicas: 2'))
    found = starts(tmp_path, graph)
    found.adopt(edited, {"model": 1, "other": 2, "front": 1})
    assert found.another("model", 0, 2, {}).spec.args == {"size": 3}
    assert found.another("other", 1, 1, {}).name == "other.1"


def test_a_deployment_is_touched_where_any_of_its_replicas_gets_another_device(tmp_path: Path) -> None:
    two = ('"m:Model"', '"m:Model", replicas: 2')
    graph, edited = load(tmp_path, two), load(tmp_path, two, ("device: cuda", 'device: "cuda:0"'))
    machine = Machine(cores=(0, 1), quota=None, memory=None, devices=parse_fake_gpus("2x24GiB"))
    placed = place(graph, machine)
    assert len({each.gpu for each in placed if each.deployment == "model"}) == 2
    found = Starts(graph, machine, placed, tmp_path, LIMITS, plan_trust(graph, {}))
    assert found.adopt(edited, {"model": 2, "other": 1, "front": 1}) == ["model"]


def test_what_has_no_room_changes_nothing(tmp_path: Path) -> None:
    graph, edited = load(tmp_path), load(tmp_path, ("size: 2", "size: 3"), ("10GiB", "30GiB"))
    found = starts(tmp_path, graph)
    with pytest.raises(PlacementError, match="model"):
        found.adopt(edited, {"model": 1, "other": 1, "front": 1})
    assert found.another("model", 0, 2, {}).spec.args == {"size": 2}


def test_who_leaves_makes_room_for_who_comes_whichever_is_named_first(tmp_path: Path) -> None:
    many = 'class: "m:Other", replicas: 6, resources: {gpu_memory: 2GiB}, device: cuda'
    found = starts(tmp_path, load(tmp_path, ('class: "m:Other"', many)))
    with pytest.raises(PlacementError, match="model"):
        found.plan({"model": 2})
    found.plan({"model": 2, "other": 1})
    assert found.another("model", 1, 1, {}).name == "model.1"
