"""The plan → stack.yml, for `docker stack deploy`: a dialect of Compose of its own, which refuses half of the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.export.compose import (
    PROCESSES,
    TMP,
    describe,
    escaped,
    healthcheck,
    relative,
    resource_limits,
)
from toolkit.export.plan import CACHE, REPLICA, SECRETS, USER, Container, Plan, refuse
from toolkit.export.yaml_text import Comments, comment, render
from toolkit.launcher.document import Key
from toolkit.spec import is_exposed

VERSION = "3.9"
"""The newest that Docker 20.10 reads."""
GPU = "NVIDIA-GPU"
"""As the nodes' `node-generic-resources` name it."""


def render_stack(plan: Plan, folder: Path) -> str:
    """The text of the file; paths in it are relative to `folder`. Raises GraphError where Swarm cannot do it."""
    refuse(plan.graph, list(_find_problems(plan)))
    return comment(_head(plan)) + "\n\n" + render(build(plan, folder), _comments(plan))


def build(plan: Plan, folder: Path) -> dict[str, Any]:
    """The file as plain values."""
    services = {each.host: _service(plan, each) for each in plan.containers}
    fetches = {f"fetch-{name}": _fetch(plan, name) for name in plan.fetches}
    found: dict[str, Any] = {
        "version": VERSION,
        "services": {**fetches, **services},
        "networks": {"inside": {"driver": "overlay", "internal": True}, "outside": {"driver": "overlay"}},
    }
    if fetches:
        found["volumes"] = {"models": {}}
    if plan.secrets:
        found["secrets"] = {name: {"file": escaped(relative(path, folder))} for name, path in plan.secrets.items()}
    return found


def _find_problems(plan: Plan) -> Iterator[tuple[Key, str]]:
    for each in plan.containers:
        key = ("services", each.name)
        if each.gpu is not None and each.gpu.id:
            yield (*key, "device"), f"Swarm gives GPUs by their count, and not {each.said.device}; say device: cuda"
        for one in each.published:
            if not is_exposed(f"{one.host}:{one.port}"):
                yield (
                    (*key, "host"),
                    (
                        f"Swarm opens a port on every machine, and cannot keep {one.port} to {one.host}; "
                        "say host: 0.0.0.0, with tls, auth or insecure: true"
                    ),
                )


def _service(plan: Plan, each: Container) -> dict[str, Any]:
    found: dict[str, Any] = {
        **_common(plan, each.said.image),
        "command": list(REPLICA),
        "environment": escaped({name: untemplated(value) for name, value in each.environment.items()}),
        "networks": ["inside", *(["outside"] if each.published or each.calls_outside else [])],
        "healthcheck": healthcheck(each, interval="5s"),
        "stop_grace_period": f"{each.stop_grace}s",
        "deploy": _deploy(each),
    }
    if each.said.image in plan.fetches:
        found["volumes"] = [f"models:{CACHE}:ro"]
    if each.published:
        found["ports"] = [
            {"target": one.target, "published": one.port, "protocol": "tcp", "mode": "ingress"}
            for one in each.published
        ]
    if each.secrets:
        owner = {"uid": str(USER), "gid": str(USER), "mode": 0o400}
        found["secrets"] = [{"source": name, "target": f"{SECRETS}/{name}", **owner} for name in each.secrets]
    return found


def untemplated(value: str) -> str:
    """The same, after Swarm has filled in what it takes for a template."""
    return value.replace("{{", '{{"{{"}}')


def _deploy(each: Container) -> dict[str, Any]:
    is_rolling = each.said.strategy == "rolling"
    order = {"parallelism": 1, "order": "start-first"} if is_rolling else {"parallelism": 0, "order": "stop-first"}
    found: dict[str, Any] = {
        "replicas": each.said.replicas.min,
        "endpoint_mode": "vip" if each.published else "dnsrr",
        "update_config": {**order, "failure_action": "rollback", "monitor": "30s"},
        "rollback_config": order,
        "restart_policy": {"condition": "any", "delay": "2s"},
        "resources": {"limits": {**resource_limits(each), "pids": PROCESSES}},
    }
    if each.gpu is not None:
        kind = {"discrete_resource_spec": {"kind": GPU, "value": 1}}
        found["resources"]["reservations"] = {"generic_resources": [kind]}
    return found


def _fetch(plan: Plan, image: str) -> dict[str, Any]:
    """On every node: a volume is one node's own."""
    return {
        **_common(plan, image),
        "command": escaped(list(plan.fetches[image])),
        "networks": ["outside"],
        "volumes": [f"models:{CACHE}"],
        "deploy": {"mode": "global-job", "restart_policy": {"condition": "on-failure", "delay": "5s"}},
    }


def _common(plan: Plan, image: str) -> dict[str, Any]:
    return {
        "image": "${REGISTRY:-}" + plan.image(image),
        "init": True,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": [TMP],
        "cap_drop": ["ALL"],
    }


def _head(plan: Plan) -> str:
    made = f"{plan.graph.name}, made by `toolkit export swarm {plan.graph.path.name}`: change that file, and export it again."
    return "\n".join([made, *plan.graph.description.splitlines(), *_USAGE])


_USAGE = (
    "",
    "  docker stack deploy --compose-file stack.yml NAME",
    "",
    "Swarm builds nothing: build the images with the Dockerfile and push them; REGISTRY, with a / at its end, says where.",
    "It knows no order of starting either: a service waits for those that it calls by itself.",
)


def _comments(plan: Plan) -> Comments:
    found: dict[tuple[str, ...], str] = {
        ("networks", "inside"): "No way out, and none in.",
        ("networks", "outside"): "For what is published, and for what calls others or downloads.",
    }
    for name in plan.fetches:
        found["services", f"fetch-{name}"] = "Brings the models to each node, and ends."
    for each in plan.containers:
        lines = [line for line in describe(each) if not line.startswith("Published on")]
        lines += [f"Published on port {one.port} of every node." for one in each.published]
        found["services", each.host] = "\n".join(lines)
        if not each.published:
            said = "Each address of its replicas, and not one for all: gRPC keeps its connections."
            found["services", each.host, "deploy", "endpoint_mode"] = said
    return found
