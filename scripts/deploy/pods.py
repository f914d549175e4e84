"""The pods of the exported manifests, each container started as Kubernetes would: command, environment, user, mounts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.chaos_cases.case import Row
from scripts.deploy import project
from scripts.deploy.calls import health, outsiders
from scripts.deploy.commands import docker, wait_until

NETWORK = "pods"
Manifest = Mapping[str, Any]


async def run(folder: Path) -> AsyncIterator[Row]:
    """pods: each container of the Kubernetes manifests by hand, its probes asked, and ended within its grace"""
    shop, out = folder / "shop", folder / "kubernetes"
    project.export(shop, "kubernetes", out)
    deployments = [one for one in _manifests(out) if one["kind"] == "Deployment"]
    await docker("network", "create", "--internal", NETWORK)
    pods = {name: deployment for deployment in deployments for name in _pods(deployment)}
    for name, deployment in pods.items():
        await _start(name, deployment)
    addresses = {name: await _address(name) for name in pods}
    began = time.monotonic()
    ready = await asyncio.gather(*(_probed(name, pods[name], addresses[name]) for name in pods))
    seconds = time.monotonic() - began
    yield Row(
        "pods", "whose probes do not succeed", ready.count(False), "<=", 0, "", {"pods": len(pods), "ready_s": seconds}
    )
    entry = addresses["entry-0"]
    yield Row("pods", "calls of the entry that failed", await outsiders(entry), "<=", 0)
    began = time.monotonic()
    ended = await asyncio.gather(*(_end(name, deployment) for name, deployment in pods.items()))
    slowest = time.monotonic() - began
    yield Row("pods", "that did not end by themselves", ended.count(False), "<=", 0, "", {"slowest_s": slowest})
    await docker("network", "rm", NETWORK)


def _manifests(folder: Path) -> Iterator[Manifest]:
    named = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    for name in named:
        yield from yaml.safe_load_all((folder / name).read_text())


def _pods(deployment: Manifest) -> list[str]:
    return [f"{deployment['metadata']['name']}-{number}" for number in range(deployment["spec"]["replicas"])]


async def _start(name: str, deployment: Manifest) -> None:
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    who, rights = pod["securityContext"], container["securityContext"]
    options = [
        f"--user={who['runAsUser']}:{who['runAsGroup']}",
        *(f"--cap-drop={each}" for each in rights["capabilities"]["drop"]),
    ]
    if rights["readOnlyRootFilesystem"]:
        options.append("--read-only")
    if not rights["allowPrivilegeEscalation"]:
        options.append("--security-opt=no-new-privileges")
    empty = {each["name"] for each in pod["volumes"] if "emptyDir" in each}
    options += [f"--tmpfs={each['mountPath']}" for each in container["volumeMounts"] if each["name"] in empty]
    options += [f"--env={each['name']}={_read(each['value'])}" for each in container["env"]]
    options += [f"--network={NETWORK}", f"--network-alias={deployment['metadata']['name']}"]  # as a headless service
    first, *rest = map(_read, container["command"])
    await docker("run", "--detach", f"--name={name}", *options, f"--entrypoint={first}", container["image"], *rest)


def _read(text: str) -> str:
    """As Kubernetes reads it, where it names no variable."""
    return text.replace("$$", "$")


async def _address(name: str) -> str:
    networks = json.loads(await docker("inspect", name))[0]["NetworkSettings"]["Networks"]
    return f"{networks[NETWORK]['IPAddress']}:{project.PORT}"


async def _probed(name: str, deployment: Manifest, address: str) -> bool:
    """The start-up probe within its time, and the other two after it."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    start = container["startupProbe"]
    limit = min(60.0, start["periodSeconds"] * start["failureThreshold"])
    await wait_until(f"{name} has started", lambda: _asked(address, start), timeout=limit)
    return all([await _asked(address, container[each]) for each in ("readinessProbe", "livenessProbe")])


async def _asked(address: str, probe: Manifest) -> bool:
    return await health(f"{address.rpartition(':')[0]}:{probe['grpc']['port']}")


async def _end(name: str, deployment: Manifest) -> bool:
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    await docker("stop", f"--time={grace}", name, timeout=grace + 30)
    code = json.loads(await docker("inspect", name))[0]["State"]["ExitCode"]
    await docker("rm", name)
    return bool(code == 0)
