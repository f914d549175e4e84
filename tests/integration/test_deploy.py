"""The containers of the Kubernetes manifests, each started by hand as its pod would; `scripts/test-deploy` has an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.integration.alone import Alone, alone
from tests.integration.up import Project, toolkit

pytestmark = pytest.mark.integration

GRAPH = """\
leaf: {class: "classes:Leaf", replicas: 2, env: {ODD: "a $(b) $$ 'c'"}}
entry: {class: "classes:Caller", port: PORT}
"""
SERVING = b"\x08\x01"
PORT = 50051


def test_each_container_of_the_manifests_boots_passes_its_probes_and_answers(tmp_path: Path) -> None:
    done = toolkit(
        "export", "kubernetes", str(Project(tmp_path).write(GRAPH)), "-o", str(tmp_path / "out"), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = {one["metadata"]["name"]: one["spec"] for one in deployments(tmp_path / "out")}
    with ExitStack() as stack:
        leaves = [stack.enter_context(boot(found["leaf"], tmp_path)) for _ in range(found["leaf"]["replicas"])]
        pods = [ready(each, found["leaf"]) for each in leaves]
        told = json.loads(variables(container(found["entry"]))["TOOLKIT_ADDRESSES"])
        assert told == {"leaf": [f"dns:///leaf:{PORT}"]}
        mapped = json.dumps({"leaf": pods})  # where the name of the headless service stands for each pod
        entry = stack.enter_context(boot(found["entry"], tmp_path, TOOLKIT_ADDRESSES=mapped))
        target = ready(entry, found["entry"])
        called = toolkit("call", "Say", '{"text": "hi"}', "--target", target, folder=tmp_path)
        assert json.loads(called.stdout)["text"] == "hi"


def test_a_value_reaches_its_container_as_the_graph_file_says_it(tmp_path: Path) -> None:
    done = toolkit(
        "export", "kubernetes", str(Project(tmp_path).write(GRAPH)), "-o", str(tmp_path / "out"), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    leaf = next(one for one in deployments(tmp_path / "out") if one["metadata"]["name"] == "leaf")
    assert variables(container(leaf["spec"]))["ODD"] == "a $(b) $$ 'c'"


def deployments(folder: Path) -> Iterator[Mapping[str, Any]]:
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        yield from (one for one in yaml.safe_load_all((folder / name).read_text()) if one["kind"] == "Deployment")


def container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    (found,) = spec["template"]["spec"]["containers"]
    return dict(found)


def variables(container: Mapping[str, Any]) -> dict[str, str]:
    """As Kubernetes reads them, where no variable is named: `$$` is `$`."""
    return {each["name"]: each["value"].replace("$$", "$") for each in container["env"]}


def boot(spec: Mapping[str, Any], folder: Path, **mapped: str) -> Any:
    """Its command with its environment, but for where it listens: one machine has no address for each pod."""
    said = container(spec)
    assert said["command"] == ["python", "-m", "toolkit.replica"]
    environment = {**variables(said), "TOOLKIT_LISTEN": json.dumps(["127.0.0.1:0"]), **mapped}
    return alone(environment["TOOLKIT_SERVICE"], folder=folder, env=environment)


def ready(replica: Alone, spec: Mapping[str, Any]) -> str:
    """Its address, once all of its probes have succeeded."""
    (address,) = replica.wait_ready()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container(spec)[probe]["grpc"] == {"port": PORT}
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=30) == SERVING
    return address
