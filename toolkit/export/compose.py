"""The plan → docker-compose.yml, for Compose v2 and docker-compose 1.29."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from toolkit.export.plan import CACHE, PROBING, REPLICA, SECRETS, USER, Container, Plan, Published
from toolkit.export.yaml_text import Comments, comment, render
from toolkit.launcher.folder import project_folder

TMP = "/tmp"
PROCESSES = 1024
"""Threads count too."""


def render_compose(plan: Plan, folder: Path) -> str:
    """The text of the file; paths in it are relative to `folder`, where it will lie."""
    return comment(_head(plan)) + "\n\n" + render(build(plan, folder), _comments(plan))


def build(plan: Plan, folder: Path) -> dict[str, Any]:
    """The file as plain values."""
    services = {each.host: _service(plan, each, folder) for each in plan.containers}
    fetches = {f"fetch-{name}": _fetch(plan, name, command, folder) for name, command in plan.fetches.items()}
    found: dict[str, Any] = {
        "services": {**fetches, **services},
        "networks": {"inside": {"internal": True}, "outside": {}},
    }
    if fetches:
        found["volumes"] = {"models": {}}
    if plan.secrets:
        found["secrets"] = {name: {"file": escaped(relative(path, folder))} for name, path in plan.secrets.items()}
    return found


def _service(plan: Plan, each: Container, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "image": plan.image(each.said.image),
        "build": _build(plan, each.said.image, folder),
        "command": list(REPLICA),
        "environment": escaped(dict(each.environment)),
        **_hardened(),
        "networks": ["inside", *(["outside"] if each.published or each.calls_outside else [])],
        "healthcheck": healthcheck(each, interval="3s"),
        "stop_grace_period": f"{each.stop_grace}s",
        "restart": "unless-stopped",
        **_resources(each),
    }
    depends = {callee: {"condition": "service_healthy"} for callee in each.calls}
    if each.said.image in plan.fetches:
        depends[f"fetch-{each.said.image}"] = {"condition": "service_completed_successfully"}
        found["volumes"] = [f"models:{CACHE}:ro"]
    if depends:
        found["depends_on"] = depends
    if each.published:
        found["ports"] = [f"{_host(one)}:{one.port}:{one.target}" for one in each.published]
    if each.secrets:
        found["secrets"] = [{"source": name, "target": f"{SECRETS}/{name}"} for name in each.secrets]
    return found


def _host(published: Published) -> str:
    return f"[{published.host}]" if ":" in published.host else published.host


def _fetch(plan: Plan, image: str, command: Any, folder: Path) -> dict[str, Any]:
    return {
        "image": plan.image(image),
        "build": _build(plan, image, folder),
        "command": escaped(list(command)),
        **_hardened(),
        "networks": ["outside"],
        "volumes": [f"models:{CACHE}"],
        "restart": "no",
    }


def _build(plan: Plan, image: str, folder: Path) -> dict[str, Any]:
    project = project_folder(plan.graph.path)
    dockerfile = plan.graph.path.absolute().parent.relative_to(project) / "Dockerfile"
    return {
        "context": escaped(relative(project, folder)),
        "dockerfile": escaped(dockerfile.as_posix()),
        "target": image,
        "args": ["BASE", "RUNTIME", "WHEELS", "PIP_NO_INDEX"],  # from the environment, where they are in it
    }


def _hardened() -> dict[str, Any]:
    """Nothing can be written but /tmp, and nothing gained."""
    return {
        "init": True,
        "user": f"{USER}:{USER}",
        "read_only": True,
        "tmpfs": [TMP],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": PROCESSES,
    }


def healthcheck(each: Container, *, interval: str) -> dict[str, Any]:
    """Failures do not count while the model loads."""
    return {
        "test": ["CMD", *PROBING],
        "interval": interval,
        "timeout": "3s",
        "retries": 3,
        "start_period": f"{each.spec.start_timeout:g}s",
    }


def _resources(each: Container) -> dict[str, Any]:
    """Not as `deploy`, of which docker-compose 1.29 takes no notice, and Compose v2 no `pids` beside `pids_limit`."""
    limits = resource_limits(each)
    found: dict[str, Any] = {"scale": each.said.replicas.min}
    found |= {ours: limits[theirs] for ours, theirs in (("cpus", "cpus"), ("mem_limit", "memory")) if theirs in limits}
    if each.gpu is not None:
        which: dict[str, Any] = {"device_ids": [each.gpu.id]} if each.gpu.id else {"count": 1}
        devices = [{"driver": "nvidia", **which, "capabilities": ["gpu"]}]
        found["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return found


def resource_limits(each: Container) -> dict[str, str]:
    """Text: as a number, 0.5 would be read differently here and there."""
    found = {}
    if each.said.resources.cpus is not None:
        found["cpus"] = f"{each.said.resources.cpus:g}"
    if each.said.resources.memory is not None:
        found["memory"] = _amount(each.said.resources.memory)
    return found


def _amount(size: int) -> str:
    return f"{size}b" if size % (1 << 20) else f"{size >> 20}m"


def escaped(value: Any) -> Any:
    """The same, after Compose has replaced what it takes for variables."""
    match value:
        case str():
            return value.replace("$", "$$")
        case list():
            return [escaped(each) for each in value]
        case dict():
            return {key: escaped(each) for key, each in value.items()}
    return value


def relative(path: Path, folder: Path) -> str:
    relative = Path(os.path.relpath(path, folder)).as_posix()
    return relative if relative.startswith(".") else f"./{relative}"


def _head(plan: Plan) -> str:
    made = f"{plan.graph.name}, made by `toolkit export compose {plan.graph.path.name}`: change that file, and export it again."
    return "\n".join([made, *plan.graph.description.splitlines(), *_USAGE])


_USAGE = (
    "",
    "  docker compose up --build --wait      (docker-compose 1.29: docker-compose up --build --detach)",
    "",
    "BASE, RUNTIME, WHEELS and PIP_NO_INDEX in the environment are arguments of the Dockerfile, which says what they do.",
)


def _comments(plan: Plan) -> Comments:
    found: dict[tuple[str, ...], str] = {
        (
            "networks",
        ): "All are inside, from where no way leads out; outside is what is published, calls others or downloads.",
        ("volumes",): "Filled once by the fetch jobs; the services read it, and are offline.",
        ("secrets",): f"Docker mounts these files as they are: user {USER} must be able to read them.",
    }
    for name in plan.fetches:
        found["services", f"fetch-{name}"] = "Brings the models, and ends. What is there already is not brought again."
    for each in plan.containers:
        found["services", each.host] = "\n".join(describe(each))
    return found


def describe(each: Container) -> list[str]:
    """What a reader should know of it."""
    lines = [f"{each.runs}; calls {', '.join(each.calls) or 'nobody'}"]
    lines += [f"Published on {one.host}:{one.port}." for one in each.published]
    if each.said.device == "auto":
        lines.append("device: auto is the CPU here; say device: cuda for a GPU.")
    if each.said.resources.gpu_memory is not None:
        lines.append("Nobody watches over gpu_memory here: its GPU is whole, or shared with whoever reserves the same.")
    if each.said.replicas.max > each.said.replicas.min:
        lines.append(f"From {each.said.replicas.min} to {each.said.replicas.max} replicas: by hand here, with --scale.")
    return lines
