"""Histories: scripted events through the real loop, with a clock, processes and a view that are fakes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.supervising import (
    ALL,
    CONTRACTS,
    EDIT,
    HANDLES,
    HUP,
    INT,
    LIMITS,
    TERM,
    UP,
    Sleep,
    Told,
    described,
    ready,
    replay,
)
from toolkit.errors import GraphError
from toolkit.launcher.events import (
    Asked,
    Changed,
    Described,
    Draining,
    Event,
    EventReader,
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
    Signalled,
    Waiting,
    parse_event,
)
from toolkit.launcher.manifest import Graph, Replicas
from toolkit.metrics import Sample


@pytest.mark.parametrize("stop", [INT, TERM, HUP])
def test_one_signal_drains_callers_before_callees_and_exits_0(stop: Signalled) -> None:
    told = replay(*UP, stop)
    assert (told.code, told.terminated, told.killed) == (0, ["top", "middle", "leaf"], [])
    assert {row.state for row in told.view.rows.values()} == {"stopped"}


def test_a_callee_is_asked_only_when_its_callers_are_gone() -> None:
    told = replay(*UP, INT, 5.0, deaf=("top",), limits=replace(LIMITS, drain_timeout=3.0))
    assert told.processes.told == [
        ("terminate", "top"),
        ("kill", "top"),
        ("terminate", "middle"),
        ("terminate", "leaf"),
    ]


def test_ready_is_said_once_with_address_count_and_time() -> None:
    told = replay(*described(*ALL), 6.2, *ready(*ALL), INT)
    assert told.view.said[0] == "ready: g on 127.0.0.1:50051 (3 replicas, 6.2 s)"
    assert "toolkit call METHOD '{}' --graph graph.yaml" in told.view.said[1]
    assert "t.v1.Top" in told.view.said[1]


def test_progress_and_waiting_are_shown() -> None:
    story = (Progress("leaf", "read weights", 3, 10), Waiting("leaf", ("x", "y")))
    told = replay(*described("leaf"), *story, *ready("leaf"), INT, names=("leaf",))
    assert told.view.texts == [
        "starting",
        "loading",
        "read weights 3/10",
        "waiting for x, y",
        "ready after 0.0 s",
        "draining",
        "stopped",
    ]


def test_a_replica_that_fails_before_ready_takes_everything_down_and_is_told_once() -> None:
    told = replay(
        *described(*ALL), *ready("leaf"), Failed("middle", "no such model; name another"), Exited("middle", 1)
    )
    assert told.code == 1
    assert told.view.complaints == ["middle: no such model; name another"]
    assert sorted(told.terminated) == ["leaf", "middle", "top"]
    assert not told.processes.running


def test_a_replica_that_exits_in_silence_is_told_too() -> None:
    told = replay(*described("leaf"), Exited("leaf", 3), names=("leaf",))
    assert told.code == 1
    assert told.view.complaints == ["leaf: exited with code 3 before it was ready; its last lines are above"]


SEGV, NINE = -signal.SIGSEGV, -signal.SIGKILL


def back(name: str) -> list[Event]:
    """A replica that joins, from its first word to its readiness."""
    deployment = name.split("#")[0].split(".")[0]
    return [Described(name, CONTRACTS[deployment], HANDLES[deployment]), Ready(name, (f"unix:/{name}",))]


def test_a_replica_that_dies_starts_again_after_a_pause_and_its_callers_are_told() -> None:
    told = replay(*UP, Exited("leaf", SEGV), 0.3, *back("leaf#2"), INT)
    assert told.code == 0
    assert told.processes.spawned[3:] == ["leaf#2"]
    assert told.view.complaints == [
        "leaf: was ended by SIGSEGV while it served; its last lines are above; starts again in 0.2 s"
    ]
    message = {"addresses": {"leaf": ("unix:/leaf.0.2",)}}
    assert told.processes.messages == [("middle", message), ("top", message)]


def test_a_replica_that_joins_is_told_where_the_others_are_now() -> None:
    told = replay(*UP, Exited("leaf", SEGV), 0.3, *back("leaf#2"), Exited("middle", SEGV), 0.3, *back("middle#2"), INT)
    spec = told.processes.specs["middle#2"]
    assert spec.joins
    assert spec.addresses["leaf"] == ("unix:/leaf.0.2",)


def test_callers_of_several_are_told_at_once_who_is_gone() -> None:
    names = ("leaf.0", "leaf.1", "middle", "top")
    told = replay(
        *described(*names), *ready(*names), Exited("leaf.1", NINE), 0.3, *back("leaf.1#2"), INT, replicas={"leaf": 2}
    )
    assert [message["addresses"]["leaf"] for name, message in told.processes.messages if name == "top"] == [
        ("unix:/leaf.0.1",),
        ("unix:/leaf.0.1", "unix:/leaf.1.2"),
    ]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            OutOfMemory("leaf", (2 << 30) + (1 << 27), 2 << 30),
            (
                "leaf: out of memory: used 2.12GiB of resources.memory 2GiB; raise it, or lower what the model takes: its "
                "batches, or traffic.max_concurrency"
            ),
        ),
        (
            OutOfMemory("leaf"),
            (
                "leaf: out of memory: the kernel ended it, for this machine or its container has none left; run less here, or "
                "set resources.memory, so that it is known who takes too much"
            ),
        ),
    ],
)
def test_what_runs_out_of_memory_is_told_as_such(event: OutOfMemory, expected: str) -> None:
    told = replay(*UP, event, Exited("leaf", NINE), 0.3, *back("leaf#2"), INT, deaf=("leaf",))
    assert told.code == 0
    assert told.view.complaints == [f"{expected}; starts again in 0.2 s"]


@pytest.mark.parametrize("reach", [described("leaf"), []])
def test_what_runs_out_of_memory_while_it_loads_is_not_tried_again(reach: list[Event]) -> None:
    told = replay(*described("middle", "top"), *reach, OutOfMemory("leaf"), Exited("leaf", NINE))
    assert told.code == 1
    assert [each[:20] for each in told.view.complaints] == ["leaf: out of memory:"]


def test_a_replica_that_the_kernel_killed_is_told_so() -> None:
    told = replay(*UP, Exited("leaf", NINE), INT)
    assert told.view.complaints[0].startswith(
        "leaf: was ended by SIGKILL while it served; the kernel does that when memory runs out"
    )


@pytest.mark.parametrize("last", [[], [Draining("middle")]])
def test_a_replica_that_leaves_unasked_is_started_again_even_with_status_0(last: list[Event]) -> None:
    told = replay(*UP, *last, Exited("middle", 0), 0.3, *back("middle#2"), INT)
    assert told.code == 0
    assert len(told.view.complaints) == 1


@pytest.mark.parametrize("last", [[Exited("leaf", 0)], [Failed("leaf", "cannot be left"), Exited("leaf", 1)]])
def test_one_that_drains_unasked_is_started_again_however_long_it_has_served(last: list[Event]) -> None:
    """Somebody else may send it SIGTERM."""
    told = replay(*UP, 1000.0, Draining("leaf"), 5.0, *last, 0.3, *back("leaf#2"), INT)
    assert (told.code, told.killed) == (0, [])
    assert told.processes.spawned[3:] == ["leaf#2"]
    assert "starts again in 0.2 s" in told.view.complaints[0]


def test_one_that_drains_unasked_has_no_longer_than_one_that_is_asked() -> None:
    told = replay(*UP, 1000.0, Draining("leaf"), 33.0, *back("leaf#2"), INT)
    assert (told.code, told.killed) == (0, ["leaf"])
    assert told.view.complaints == ["leaf: still busy after 30 s of draining; killed"]


def test_a_replica_that_dies_too_often_is_given_up_and_takes_the_graph_down() -> None:
    deaths: list[Event | float] = []
    for number in range(2, 7):
        deaths += [4.0, *back(f"leaf#{number}"), Exited(f"leaf#{number}", 3)]
    told = replay(*UP, Exited("leaf", 3), *deaths)
    assert told.code == 1
    pauses = [line.rpartition("in ")[2] for line in told.view.complaints if "starts again" in line]
    assert pauses == ["0.2 s", "0.4 s", "0.8 s", "1.6 s", "3.2 s"]
    assert told.view.complaints[-1].endswith("5 restarts within 300 s are spent")
    assert not told.processes.running


def test_one_of_several_that_is_given_up_leaves_the_others_serving() -> None:
    up = [*described("leaf.0", "leaf.1"), *ready("leaf.0", "leaf.1")]
    story = [Exited("leaf.1", 3), 0.3, Failed("leaf.1#2", "no such model"), Exited("leaf.1#2", 1), 1000.0]
    told = replay(*up, *story, INT, names=("leaf",), replicas={"leaf": 2})
    assert told.code == 0
    assert told.processes.spawned == ["leaf.0", "leaf.1", "leaf.1#2"]
    assert told.view.complaints[1:] == ["leaf.1#2: no such model", "leaf goes on with 1"]


def test_a_start_that_fails_is_not_tried_again() -> None:
    told = replay(*UP, Exited("leaf", 3), 0.3, Failed("leaf#2", "importing m failed"), Exited("leaf#2", 1))
    assert (told.code, told.view.complaints[1:]) == (1, ["leaf#2: importing m failed"])


# What is asked for


RESTART = Asked(7, {"do": "restart", "services": ["leaf"]})


def test_a_replacement_is_ready_before_the_old_one_leaves() -> None:
    told = replay(*UP, RESTART, *back("leaf#2"), INT)
    assert (told.code, told.answers) == (0, [(7, {"code": 0})])
    assert told.processes.spawned[3:] == ["leaf#2"]
    assert told.terminated == ["leaf", "top", "middle", "leaf#2"]
    assert ("leaf", {"replaced": True}) in told.processes.messages
    assert told.view.complaints == []


def test_a_replacement_that_cannot_start_leaves_the_old_one_and_is_not_tried_again() -> None:
    told = replay(*UP, RESTART, Failed("leaf#2", "SyntaxError"), Exited("leaf#2", 1), 1000.0, INT)
    assert told.view.complaints == ["leaf#2: SyntaxError", "leaf goes on serving"]
    assert told.processes.spawned[3:] == ["leaf#2"]
    assert [(client, answer["code"]) for client, answer in told.answers] == [(7, 1)]
    assert told.code == 0


def test_a_replacement_that_dies_leaves_the_old_one() -> None:
    told = replay(*UP, RESTART, Exited("leaf#2", SEGV), 1000.0, INT)
    assert told.view.complaints[1] == "leaf goes on serving"
    assert told.processes.spawned[3:] == ["leaf#2"]


def test_one_that_dies_while_its_replacement_starts_is_not_missed() -> None:
    rows = Asked(8, {"do": "ps"})
    told = replay(*UP, RESTART, Exited("leaf", SEGV), *back("leaf#2"), rows, 1000.0, INT)
    assert told.code == 0
    assert told.view.complaints == [
        "leaf: was ended by SIGSEGV while it served; its last lines are above; leaf#2 takes its place"
    ]
    assert [row["state"] for row in dict(told.answers)[8]["replicas"]] == ["ready"] * 3
    assert (7, {"code": 0}) in told.answers


def test_a_pause_before_a_restart_keeps_nobody_busy_while_the_others_drain() -> None:
    told = replay(*UP, Exited("leaf", SEGV), INT, 30.0, deaf=("top",))
    assert told.killed == ["top"]


def test_a_pause_before_a_restart_keeps_nobody_busy_while_all_others_leave_first() -> None:
    old = ("leaf.0", "leaf.1")
    up = [*described(*old), *ready(*old), RESTART, *back("leaf#2")]
    story = [EDIT, Exited("leaf#2", SEGV), 33.0, *back("leaf#3"), *back("leaf.1#2"), INT]
    edited = edit("leaf", strategy="recreate")
    told = replay(*up, *story, names=("leaf",), replicas={"leaf": 2}, deaf=old, edited=edited)
    assert told.killed == ["leaf.0", "leaf.1"]
    assert told.processes.spawned[3:] == ["leaf#3", "leaf.1#2"]


def test_where_a_replacement_could_not_start_those_of_before_come_back_under_either_strategy() -> None:
    old = ("leaf.0", "leaf.1")
    failing = [RESTART, Failed("leaf#2", "SyntaxError"), Exited("leaf#2", 1)]
    death = [Exited("leaf.1", SEGV), 0.3, *back("leaf.1#2")]
    edited = edit("leaf", strategy="recreate")
    up = [*described(*old), *ready(*old)]
    told = replay(*up, *failing, EDIT, *death, INT, names=("leaf",), replicas={"leaf": 2}, edited=edited)
    assert told.processes.spawned[2:] == ["leaf#2", "leaf.1#2"]


def test_several_are_replaced_one_at_a_time() -> None:
    names = ("leaf.0", "leaf.1")
    story = [RESTART, *back("leaf#2"), *back("leaf.1#2"), INT]
    told = replay(*described(*names), *ready(*names), *story, names=("leaf",), replicas={"leaf": 2})
    order = [each for each in told.processes.told if each[1] in names]
    assert order == [("terminate", "leaf.0"), ("terminate", "leaf.1")]
    assert told.processes.spawned[2:] == ["leaf#2", "leaf.1#2"]


def test_recreate_lets_all_leave_before_a_new_one_starts() -> None:
    told = replay(*UP, RESTART, *back("leaf#2"), INT, strategy="recreate")
    assert told.code == 0
    assert told.processes.messages == [
        (name, {"addresses": {"leaf": ("unix:/leaf.0.2",)}}) for name in ("middle", "top")
    ]


def test_scaling_up_starts_more_and_tells_their_callers() -> None:
    scale = Asked(7, {"do": "scale", "counts": {"leaf": 3}})
    told = replay(*UP, scale, *back("leaf.1"), *back("leaf.2"), INT)
    assert (told.code, told.answers) == (0, [(7, {"code": 0})])
    assert told.processes.messages[-1] == (
        "top",
        {"addresses": {"leaf": ("unix:/leaf.0.1", "unix:/leaf.1.1", "unix:/leaf.2.1")}},
    )


def test_scaling_down_tells_callers_before_a_replica_is_asked_to_go() -> None:
    scale = [Asked(1, {"do": "scale", "counts": {"leaf": count}}) for count in (2, 1)]
    told = replay(*UP, scale[0], *back("leaf.1"), scale[1], INT)
    assert told.terminated[0] == "leaf.1"
    assert told.processes.messages[-1] == ("top", {"addresses": {"leaf": ("unix:/leaf.0.1",)}})


def test_scaling_beyond_the_machine_is_refused() -> None:
    told = replay(*UP, Asked(1, {"do": "scale", "counts": {"leaf": 10}}), INT)
    assert told.answers == [(1, {"code": 3, "error": "no room"})]
    assert told.processes.spawned == list(ALL)
    told = replay(*UP, Asked(1, {"do": "scale", "counts": {"leaf": 2, "middle": 10}}), INT)
    assert told.answers == [(1, {"code": 3, "error": "no room"})]
    assert told.processes.spawned == list(ALL), "who is refused a part is refused all"


@pytest.mark.parametrize("most", [2, 3])
def test_scaling_stays_within_the_least_and_the_most_of_the_graph_file(most: int) -> None:
    scale = Asked(7, {"do": "scale", "counts": {"leaf": 3}})
    told = replay(*UP, scale, *(() if most == 2 else (*back("leaf.1"), *back("leaf.2"))), INT, most=most)
    refused = {"code": 2, "error": "leaf=3: the graph file says from 1 to 2; name one of these, or change it there"}
    assert told.answers == [(7, refused if most == 2 else {"code": 0})]


def test_down_is_a_clean_stop() -> None:
    told = replay(*UP, Asked(1, {"do": "down"}))
    assert (told.code, told.terminated) == (0, ["top", "middle", "leaf"])


def test_who_waits_is_told_when_all_is_ready() -> None:
    told = replay(Asked(3, {"do": "wait"}), *UP, INT)
    assert told.answers == [(3, {"code": 0})]


@pytest.mark.parametrize("request_", [{}, {"do": "fly"}, {"do": "restart", "services": 3}, {"do": "scale"}])
def test_what_nobody_understands_is_refused(request_: Mapping[str, Any]) -> None:
    ((_, answer),) = replay(*UP, Asked(1, request_), INT).answers
    assert answer["code"] == 2


def test_only_what_is_made_of_a_changed_file_is_replaced() -> None:
    files = [Loaded("leaf", ("/p/leaf.py", "/p/common.py")), Loaded("middle", ("/p/middle.py", "/p/common.py"))]
    told = replay(*described(*ALL), *files, *ready(*ALL), Changed(("/p/leaf.py",)), *back("leaf#2"), INT)
    assert told.processes.spawned[3:] == ["leaf#2"]
    assert "leaf.py changed: replacing leaf" in told.view.said
    both = replay(*described(*ALL), *files, *ready(*ALL), Changed(("/p/common.py", "/p/other.py")), INT)
    assert sorted(both.processes.spawned[3:]) == ["leaf#2", "middle#2"]


# A graph file that is edited


def edit(name: str, **said: Any) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, services={**graph.services, name: replace(graph.services[name], **said)})


def changed(told: Told) -> list[str]:
    return [said for said in told.view.said if "changed" in said]


@pytest.mark.parametrize("name", ["graph.yaml", "production.yaml"])
def test_an_edited_graph_file_replaces_what_it_is_about(name: str) -> None:
    """And one that is laid over it."""
    saved = Changed((str(Path(name).resolve()), "/p/other.yaml"))
    told = replay(*UP, saved, *back("leaf#2"), INT, edited=edit("leaf", args={"size": 3}))
    assert told.processes.spawned[3:] == ["leaf#2"]
    assert told.terminated[0] == "leaf", "which leaves once the new one is ready"
    assert changed(told) == [f"{name} changed: replacing leaf"]


def test_an_edited_number_of_replicas_starts_or_ends_some() -> None:
    more = replay(*UP, EDIT, *back("leaf.1"), INT, edited=edit("leaf", replicas=Replicas(min=2, max=2)))
    assert more.processes.spawned[3:] == ["leaf.1"]
    assert changed(more) == ["graph.yaml changed: 2 of leaf, 1 before"]
    two = [*described("leaf.0", "leaf.1", "middle", "top"), *ready("leaf.0", "leaf.1", "middle", "top")]
    fewer = replay(*two, EDIT, INT, replicas={"leaf": 2}, edited=edit("leaf", replicas=Replicas(max=1)), most=2)
    assert fewer.terminated[0] == "leaf.1"
    assert changed(fewer) == ["graph.yaml changed: 1 of leaf, 2 before"]


def test_what_scale_has_made_of_a_deployment_stays_when_something_else_is_edited() -> None:
    scaled = [Asked(7, {"do": "scale", "counts": {"leaf": 2}}), *back("leaf.1")]
    told = replay(*UP, *scaled, EDIT, *back("leaf#2"), *back("leaf.1#2"), INT, edited=edit("leaf", args={"size": 3}))
    assert told.processes.spawned[3:] == ["leaf.1", "leaf#2", "leaf.1#2"]


def test_a_range_of_replicas_that_is_edited_counts_at_once() -> None:
    """Ten calls fill a replica."""
    busy = [Load("leaf", running=10, queued=20, wait=5.0), *[1.0] * 9]
    told = replay(*UP, EDIT, *busy, INT, edited=edit("leaf", replicas=Replicas(min=1, max=2)))
    assert "leaf.1" in told.processes.spawned


@pytest.mark.parametrize(
    ("edited", "said"),
    [
        (
            edit("leaf", service="m:Other"),
            "services.leaf.class counts from the next toolkit up on, and the rest with it",
        ),
        (lambda graph: replace(graph, entry="leaf"), "entry counts from the next toolkit up on, and the rest with it"),
        (lambda graph: graph, "nothing that runs is different"),
    ],
)
def test_an_edit_that_replaces_nobody_says_so(edited: Callable[[Graph], Graph], said: str) -> None:
    told = replay(*UP, EDIT, INT, edited=edited)
    assert told.processes.spawned == list(ALL)
    assert changed(told) == [f"graph.yaml changed: {said}"]


def test_an_edit_that_is_wrong_is_shown_and_changes_nothing() -> None:
    def wrong(graph: Graph) -> Graph:
        raise GraphError("graph.yaml:4: services.leaf.devcie: unknown key\ngraph.yaml:5: no")

    told = replay(*UP, EDIT, INT, edited=wrong)
    assert told.view.complaints == [
        "graph.yaml:4: services.leaf.devcie: unknown key",
        "graph.yaml:5: no",
        "g goes on as it was",
    ]
    full = replay(*UP, EDIT, INT, edited=edit("leaf", replicas=Replicas(min=10, max=10)))
    assert full.view.complaints == ["no room", "g goes on as it was"]
    assert full.processes.spawned == told.processes.spawned == list(ALL)


def test_an_edit_that_cannot_start_leaves_the_old_ones_serving() -> None:
    failing = [Failed("leaf#2", "Leaf takes no argument sise"), Exited("leaf#2", 1)]
    told = replay(*UP, EDIT, *failing, INT, edited=edit("leaf", args={"sise": 3}))
    assert told.view.complaints == ["leaf#2: Leaf takes no argument sise", "leaf goes on serving"]
    assert told.code == 0


def test_a_change_that_cannot_start_is_mended_by_the_next_one() -> None:
    files = Loaded("leaf", ("/p/leaf.py",))
    broken = [Changed(("/p/leaf.py",)), Failed("leaf#2", "SyntaxError: line 3"), Exited("leaf#2", 1)]
    mended = [5.0, Changed(("/p/leaf.py",)), *back("leaf#3")]
    told = replay(*described(*ALL), files, *ready(*ALL), *broken, *mended, INT)
    assert told.view.complaints == ["leaf#2: SyntaxError: line 3", "leaf goes on serving"]
    assert told.terminated[:2] == ["leaf#2", "leaf"]
    assert told.code == 0


def test_a_change_that_comes_while_the_one_before_it_starts_is_tried_whatever_becomes_of_that() -> None:
    files, saved = Loaded("leaf", ("/p/leaf.py",)), Changed(("/p/leaf.py",))
    failing = [Failed("leaf#2", "SyntaxError: line 3"), Exited("leaf#2", 1)]
    told = replay(*described(*ALL), files, *ready(*ALL), saved, 1.0, saved, *failing, *back("leaf#3"), INT)
    assert told.processes.spawned[3:] == ["leaf#2", "leaf#3"]
    assert told.terminated[:2] == ["leaf#2", "leaf"]
    assert told.view.complaints == ["leaf#2: SyntaxError: line 3"]


@pytest.mark.parametrize("count", [1, 2])
def test_one_that_cannot_come_back_does_once_its_files_have_changed(count: int) -> None:
    """It is not given up, for it is of the time before the change."""
    names = ("leaf.0", "leaf.1") if count == 2 else ("leaf",)
    back_again = "leaf.1" if count == 2 else "leaf"
    files, saved = Loaded(names[0], ("/p/leaf.py",)), Changed(("/p/leaf.py",))
    up = [*described(*names), files, *ready(*names), Exited(names[-1], SEGV), 0.3]
    failing = [Failed(f"{back_again}#2", "SyntaxError: line 3"), Exited(f"{back_again}#2", 1)]
    told = replay(*up, saved, *failing, *back(f"{back_again}#3"), INT, names=("leaf",), replicas={"leaf": count})
    assert f"{back_again}#3" in told.processes.spawned
    assert told.code == 0


def test_one_that_starts_hears_where_all_others_are_now_for_it_may_call_others_than_before() -> None:
    less = Described("top", CONTRACTS["top"], {"middle": "t.v1.Middle"})
    up = [*described("leaf", "middle"), less, *ready(*ALL)]
    both = Asked(7, {"do": "restart", "services": ["leaf", "top"]})
    told = replay(*up, both, *back("leaf#2"), *back("top#2"), INT)
    assert told.processes.specs["top#2"].addresses["leaf"] == ("unix:/leaf.0.1",)
    assert ("top#2", {"addresses": {"leaf": ("unix:/leaf.0.2",)}}) in told.processes.messages


def test_what_a_replacement_failed_in_is_watched_beside_what_serves() -> None:
    up = [*described(*ALL), Loaded("leaf", ("/p/leaf.py",)), *ready(*ALL)]
    broken = [Changed(("/p/leaf.py",)), Loaded("leaf#2", ("/p/new.py",)), Failed("leaf#2", "ZeroDivisionError")]
    for mended in ("/p/new.py", "/p/leaf.py"):
        told = replay(*up, *broken, Exited("leaf#2", 1), Changed((mended,)), *back("leaf#3"), INT)
        assert told.processes.spawned[3:] == ["leaf#2", "leaf#3"]


def test_what_is_wrong_with_a_proto_is_told_and_nothing_else_happens() -> None:
    told = replay(*UP, Noted("a.proto:1:2: no\na.proto:3:4: no"), INT)
    assert told.view.complaints == ["a.proto:1:2: no", "a.proto:3:4: no"]
    assert (told.code, told.processes.spawned) == (0, list(ALL))


# Several deployments in one process


PAIR = {"leaf": "pair", "middle": "pair"}


def paired(name: str, *members: str) -> list[Event]:
    """A process with these deployments, from its first word to its readiness."""
    first, *others = (Described(name, CONTRACTS[each], HANDLES[each]) for each in members)
    return [replace(first, companions=tuple(others)), *ready(name)]


PAIR_UP = [*paired("pair", "leaf", "middle"), *described("top"), *ready("top")]


def test_those_that_share_a_process_are_one_and_stop_after_their_callers() -> None:
    told = replay(*PAIR_UP, INT, shared=PAIR)
    assert (told.code, told.processes.spawned, told.terminated) == (0, ["pair", "top"], ["top", "pair"])
    assert "ready: g on 127.0.0.1:50051 (2 replicas, 0.0 s)" in told.view.said


def test_a_process_that_dies_comes_back_as_one_and_callers_hear_of_each_member() -> None:
    story = [Exited("pair", NINE), 0.3, *paired("pair#2", "leaf", "middle"), INT]
    told = replay(*PAIR_UP, *story, shared=PAIR)
    assert (told.code, told.processes.spawned[2:]) == (0, ["pair#2"])
    message = {"addresses": {"leaf": ("unix:/leaf.0.2",), "middle": ("unix:/middle.0.2",)}}
    assert told.processes.messages == [("top", message)]


def test_a_process_hears_where_those_are_that_any_of_its_members_calls() -> None:
    up = [*described("leaf"), *ready("leaf"), *paired("pair", "top", "middle")]
    told = replay(*up, Exited("leaf", NINE), 0.3, *back("leaf#2"), INT, shared={"top": "pair", "middle": "pair"})
    assert told.processes.messages == [("pair", {"addresses": {"leaf": ("unix:/leaf.0.2",)}})]
    assert told.terminated == ["pair", "leaf#2"]


@pytest.mark.parametrize("names", [["leaf"], ["middle", "leaf"], ["pair"]])
def test_restarting_a_member_replaces_its_process_once(names: list[str]) -> None:
    restart = Asked(7, {"do": "restart", "services": names})
    told = replay(*PAIR_UP, restart, *paired("pair#2", "leaf", "middle"), INT, shared=PAIR)
    assert told.answers == [(7, {"code": 0})]
    assert (told.processes.spawned[2:], told.terminated[:1]) == (["pair#2"], ["pair"])


def test_scaling_a_member_scales_its_process() -> None:
    scale = Asked(7, {"do": "scale", "counts": {"leaf": 2}})
    told = replay(*PAIR_UP, scale, *paired("pair.1", "leaf", "middle"), INT, shared=PAIR)
    assert (told.answers, told.processes.spawned[2:]) == ([(7, {"code": 0})], ["pair.1"])
    assert told.processes.messages[-1][1]["addresses"]["middle"] == ("unix:/middle.0.1", "unix:/middle.1.1")
    unlike = Asked(7, {"do": "scale", "counts": {"leaf": 2, "middle": 3}})
    ((_, answer),) = replay(*PAIR_UP, unlike, INT, shared=PAIR).answers
    assert answer["error"] == "middle=3: there are as many of all in the process pair (leaf, middle); name one number"
    port = Asked(7, {"do": "scale", "counts": {"middle": 2}})
    both = [*described("leaf"), *ready("leaf"), *paired("pair", "top", "middle")]
    ((_, answer),) = replay(*both, port, INT, shared={"top": "pair", "middle": "pair"}).answers
    assert answer["error"].startswith("middle=2: port 50051 takes one process")


def test_a_changed_file_of_a_member_replaces_its_process_and_names_all_of_it() -> None:
    story = [Loaded("pair", ("/p/leaf.py",)), Changed(("/p/leaf.py",)), *paired("pair#2", "leaf", "middle"), INT]
    described_first, is_ready, *rest = PAIR_UP
    told = replay(described_first, story[0], is_ready, *rest, *story[1:], shared=PAIR)
    assert told.processes.spawned[2:] == ["pair#2"]
    assert "leaf.py changed: replacing pair (leaf, middle)" in told.view.said


def test_rows_name_the_members() -> None:
    ((_, answer),) = replay(*PAIR_UP, Asked(7, {"do": "ps"}), INT, shared=PAIR).answers
    assert [(row["name"], row["deployments"]) for row in answer["replicas"]] == [
        ("pair", ["leaf", "middle"]),
        ("top", ["top"]),
    ]
    assert answer["replicas"][0]["addresses"] == ["unix:/leaf.0.1", "unix:/middle.0.1"]


def test_a_cycle_of_processes_stops_the_start() -> None:
    ring = [*paired("ring", "top", "leaf")[:1], *described("middle")]
    told = replay(*ring, shared={"top": "ring", "leaf": "ring"})
    assert told.code == 2
    expected = "graph.yaml:6: services.top.process: a cycle of processes: ring → middle → ring; callers stop before those that "
    assert told.view.complaints == [
        expected + "they call, so let middle be in 'ring' too, or take one of its members out"
    ]


def test_a_process_that_describes_others_than_it_should_breaks_the_protocol() -> None:
    told = replay(*described("top"), Described("pair", "t.v1.Leaf", {}), shared=PAIR)
    assert told.code == 1
    assert "broke the protocol of its control socket: 1 descriptions of 2 deployments" in told.view.complaints[0]


def busy(seconds: int, **loads: float) -> list[Event | float]:
    """Each replica says every second how many calls it has."""
    return [each for _ in range(seconds) for each in (1.0, *(Load(name, n, 0, 0.0) for name, n in loads.items()))]


def test_more_calls_bring_more_replicas_and_fewer_calls_let_them_go() -> None:
    up = [*described("leaf"), *ready("leaf")]
    story = [*busy(5, leaf=20), *back("leaf.1"), *back("leaf.2"), *busy(200, leaf=1)]
    told = replay(*up, *story, INT, names=("leaf",), most=4)
    assert told.processes.spawned == ["leaf", "leaf.1", "leaf.2"]
    assert told.terminated[:2] == ["leaf.2", "leaf.1"]
    assert [line for line in told.view.said if "replicas, " in line] == [
        "leaf: 3 replicas, 1 before (20 calls, 0.0 s to wait)",
        "leaf: 2 replicas, 3 before (1 calls, 0.0 s to wait)",
        "leaf: 1 replicas, 2 before (1 calls, 0.0 s to wait)",
    ]


def test_fewer_calls_let_nobody_go_for_a_place_that_was_given_up() -> None:
    """`leaf.1` serves alone, and one is enough: in place 0 is nobody who could."""
    up = [*described("leaf.0", "leaf.1"), *ready("leaf.0", "leaf.1")]
    lost = [Exited("leaf.0", SEGV), 0.3, Failed("leaf#2", "no weights"), Exited("leaf#2", 1)]
    story = [*lost, *busy(200, **{"leaf.1": 1}), Exited("leaf.1", 0)]
    told = replay(*up, *story, 0.3, *back("leaf.1#2"), INT, names=("leaf",), replicas={"leaf": 2}, most=2)
    assert told.processes.spawned[2:] == ["leaf#2", "leaf.1#2"]
    assert told.terminated == ["leaf#2", "leaf.1#2"]


def test_a_process_takes_as_many_calls_as_its_members_together() -> None:
    up, names = paired("pair", "middle", "leaf"), ("leaf", "middle")
    story = [*busy(5, pair=20), *paired("pair.1", "middle", "leaf"), *busy(5, pair=10), INT]
    told = replay(*up, *story, names=names, shared=PAIR, most=4)
    assert told.processes.spawned == ["pair", "pair.1"]


def test_callers_hear_of_a_replica_that_drains_for_too_long_before_it_is_killed() -> None:
    up = [*described("leaf.0", "leaf.1", "middle"), *ready("leaf.0", "leaf.1", "middle")]
    story = [Draining("leaf.0"), LIMITS.drain_timeout + 3.0, 11.0]
    told = replay(*up, *story, INT, names=("leaf", "middle"), replicas={"leaf": 2}, immortal=("leaf.0",))
    assert told.killed[0] == "leaf.0"
    assert told.processes.messages[0] == ("middle", {"addresses": {"leaf": ("unix:/leaf.1.1",)}})


HANG = replace(LIMITS, hang_timeout=10.0)


def beats(seconds: float, *names: str) -> list[Event | float]:
    """Each replica says every second that it is well."""
    return [each for _ in range(int(seconds)) for each in (1.0, *(Load(name, 0, 0, 0.0) for name in names))]


def test_a_replica_whose_event_loop_does_not_turn_shows_where_is_killed_and_replaced() -> None:
    told = replay(*UP, *beats(12, "middle", "top"), *back("leaf#2"), INT, limits=HANG)
    assert told.processes.told[:2] == [("dump", "leaf"), ("kill", "leaf")]
    assert "its event loop has not turned for 10 s" in told.view.complaints[0]
    assert "asyncio.to_thread" in told.view.complaints[0]
    assert told.processes.spawned[3:] == ["leaf#2"]
    assert told.code == 0


@pytest.mark.parametrize("timeout", [10.0, 0.1])
def test_a_replica_that_says_that_it_is_well_is_left_alone(timeout: float) -> None:
    """However short a silence is allowed: that between two words is none."""
    told = replay(*UP, *beats(100, *ALL), INT, limits=replace(LIMITS, hang_timeout=timeout))
    assert (told.code, told.view.complaints, told.killed) == (0, [], [])


def test_a_launcher_that_was_stopped_for_a_minute_blames_nobody() -> None:
    """Its clock went on, and all that the replicas said meanwhile comes afterwards."""
    told = replay(*UP, *beats(5, *ALL), Sleep(60.0), *beats(20, *ALL), INT, limits=HANG)
    assert (told.code, told.view.complaints, told.killed) == (0, [], [])


def test_a_launcher_that_was_stopped_gives_a_start_and_a_drain_their_time() -> None:
    told = replay(*described(*ALL), Sleep(700.0), *ready(*ALL), INT, Sleep(60.0), Exited("top", 0), deaf=("top",))
    assert (told.code, told.view.complaints, told.killed) == (0, [], [])


def test_a_process_that_cannot_be_started_takes_the_others_down() -> None:
    told = replay(broken=("middle",))
    assert told.code == 1
    assert told.terminated == ["leaf"]
    assert told.view.complaints == ["middle: its process cannot be started: [Errno 2] No such file or directory"]
    assert told.view.rows["top"].state == "stopped"


def test_a_wrong_edge_stops_the_start_with_the_files_line() -> None:
    wrong = Described("top", "t.v1.Top", {"lief": "t.v1.Leaf"})
    told = replay(*described("leaf", "middle"), wrong)
    assert told.code == 2
    assert told.view.complaints == [
        (
            "graph.yaml:6: services.top: m:Top has the handle 'lief' and no deployment is named so; "
            "bind it to one that serves t.v1.Leaf: bind: {lief: leaf}"
        )
    ]


def test_a_wrong_edge_wins_over_the_failure_that_it_causes() -> None:
    wrong = Described("top", "t.v1.Top", {"lief": "t.v1.Leaf"})
    told = replay(wrong, Failed("top", "handle lief has no deployment"))
    assert told.code == 2
    assert len(told.view.complaints) == 1
    assert told.view.complaints[0].startswith("graph.yaml:6: services.top:")


def test_a_cycle_stops_the_start() -> None:
    told = replay(Described("leaf", "t.v1.Leaf", {"top": "t.v1.Top"}), *described("middle", "top"))
    assert told.code == 2
    assert "a cycle of handles: leaf → top → leaf" in told.view.complaints[0]


def test_not_ready_in_time_names_who_is_late_and_exits_4() -> None:
    told = replay(
        *described(*ALL), *ready("leaf"), Progress("middle", "read weights", 3, 10), Waiting("top", ("middle",))
    )
    assert told.code == 4
    assert told.processes.now >= 600.0
    assert told.view.complaints == [
        (
            "not ready after 600 s: middle (read weights 3/10), top (waiting for middle); "
            "raise --start-timeout if it needs longer"
        )
    ]
    assert not told.processes.running


def test_once_ready_the_start_timeout_is_over() -> None:
    assert replay(*UP, 10_000.0, INT).code == 0


def test_a_replica_that_loads_and_does_not_listen_is_killed_soon_and_that_is_clean() -> None:
    told = replay(*described(*ALL), INT, deaf=ALL)
    assert (told.code, sorted(told.killed)) == (0, sorted(ALL))
    assert told.processes.now < 5


def test_a_drain_that_takes_too_long_is_killed_and_exits_8() -> None:
    told = replay(*UP, INT, deaf=("top",))
    assert (told.code, told.killed) == (8, ["top"])
    assert told.view.complaints == ["top: still busy after 30 s of draining; killed"]
    assert not told.processes.running


@pytest.mark.parametrize(("signals", "code"), [((INT, INT), 130), ((INT, TERM), 143), ((TERM, HUP), 129)])
def test_a_second_signal_kills_everything(signals: tuple[Signalled, ...], code: int) -> None:
    told = replay(*UP, *signals, deaf=ALL)
    assert (told.code, sorted(told.killed)) == (code, sorted(ALL))
    assert not told.processes.running


def test_what_even_sigkill_does_not_move_is_left_behind_and_told() -> None:
    told = replay(*UP, INT, INT, deaf=ALL, immortal=("leaf",))
    assert told.code == 130
    assert told.view.complaints == ["leaf: does not die even of SIGKILL; left behind"]


def test_a_crash_while_draining_is_a_failure() -> None:
    told = replay(*UP, INT, Exited("top", -signal.SIGSEGV), deaf=("top",))
    assert told.code == 1
    assert told.view.complaints == ["top: was ended by SIGSEGV while it drained; its last lines are above"]
    assert told.terminated == ["top", "middle", "leaf"]


def test_sigterm_may_end_a_replica_that_has_no_handler_yet() -> None:
    assert replay(*UP[:1], INT, Exited("leaf", -signal.SIGTERM), deaf=("leaf",)).code == 0


def test_the_first_reason_counts() -> None:
    up = [*described(*ALL), *ready("top"), Failed("leaf", "no")]
    assert replay(*up, INT, deaf=("top",)).code == 130
    assert replay(*up, deaf=("top",)).code == 1


def test_replicas_of_a_deployment_count_one_by_one() -> None:
    up = [*described("leaf.0", "leaf.1"), *ready("leaf.0")]
    assert replay(*up, names=("leaf",), replicas={"leaf": 2}, limits=LIMITS).code == 4
    told = replay(*up, *ready("leaf.1"), INT, names=("leaf",), replicas={"leaf": 2})
    assert (told.code, told.terminated) == (0, ["leaf.0", "leaf.1"])


def test_a_replica_that_breaks_the_protocol_fails() -> None:
    told = replay(*ready("leaf"), names=("leaf",))
    assert told.code == 1
    assert told.view.complaints == ["leaf: broke the protocol of its control socket: readied while starting"]


def test_what_replicas_have_measured_is_told_under_their_names() -> None:
    samples: tuple[Sample, ...] = (("toolkit_server_inflight", ("leaf",), 3),)
    told = replay(*UP, Measured("leaf", samples), Asked(1, {"do": "metrics"}), INT)
    ((client, answer),) = told.answers
    said = dict(answer["said"])
    assert (client, said["leaf"]) == (1, samples)
    assert ("toolkit_replicas", ("leaf", "ready"), 1) in said[""]
    assert ("toolkit_replica_starts_total", ("leaf",), 1) in said[""]


def test_what_replicas_print_reaches_the_view() -> None:
    told = replay(*UP, Output("leaf", "hello"), INT)
    assert told.view.lines == [("leaf", "hello")]


def test_events_are_read_from_lines() -> None:
    reader = EventReader("a")
    text = (
        b'{"event":"described","contract":"t.v1.T","handles":{"x":"t.v1.X"},'
        b'"companions":[{"contract":"t.v1.U","handles":{}}]}\n'
        b'{"event":"progress","phase":"p","done":3,"total":null}\n{"event":"waiting","for":["x"]}\n'
        b'{"event":"ready","addresses":["unix:/x"]}\n{"event":"load","running":1,"queued":2,"wait":0.5}\n'
        b'{"event":"measured","samples":[["toolkit_server_queued",["a"],2]]}\n'
        b'{"event":"loaded","files":["/a.py"]}\n{"event":"failed","message":"m"}\n{"event":"draining"}\n'
    )
    found = [event for start in range(0, len(text), 7) for event in reader.feed(text[start : start + 7])]
    assert found == [
        Described("a", "t.v1.T", {"x": "t.v1.X"}, {}, (Described("a", "t.v1.U", {}),)),
        Progress("a", "p", 3, None),
        Waiting("a", ("x",)),
        Ready("a", ("unix:/x",)),
        Load("a", 1, 2, 0.5),
        Measured("a", (("toolkit_server_queued", ("a",), 2),)),
        Loaded("a", ("/a.py",)),
        Failed("a", "m"),
        Draining("a"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"\xff",
        b"[]",
        b"{}",
        b'{"event":"flies"}',
        b'{"event":["ready"]}',
        b'{"event":"ready"}',
        b'{"event":"ready","addresses":[1]}',
        b'{"event":"described","contract":1,"handles":{}}',
        b'{"event":"described","contract":"c","handles":{"x":1}}',
        b'{"event":"described","contract":"c","handles":{},"batched":[]}',
        b'{"event":"described","contract":"c","handles":{},"companions":{}}',
        b'{"event":"described","contract":"c","handles":{},"companions":[1]}',
        b'{"event":"described","contract":"c","handles":{},"companions":[{"contract":1,"handles":{}}]}',
        b'{"event":"progress","phase":"p","done":"3"}',
        b'{"event":"progress","phase":"p","done":true}',
        b'{"event":"measured","samples":[["toolkit_server_queued",["a"],"2"]]}',
        b'{"event":"failed"}',
        b"[" * 60_000,
    ],
)
def test_a_line_that_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_event("a", line)


@pytest.mark.parametrize("flood", [b"x" * 300_000, b"x" * 300_000 + b"\n", b"nonsense\n" * 10])
def test_what_breaks_the_protocol_fails_the_replica_once(flood: bytes) -> None:
    reader = EventReader("a")
    found = [event for start in range(0, len(flood), 4096) for event in reader.feed(flood[start : start + 4096])]
    assert [type(event) for event in found] == [Failed]


def test_the_supervisor_brings_in_nothing_heavy() -> None:
    heavy = ("grpc", "numpy", "torch", "google.protobuf", "rich", "typer", "asyncio", "services")
    code = f"import sys, toolkit.launcher.supervisor; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == "[]"
