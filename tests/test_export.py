"""The files of other engines: they say what the graph file says, whatever is in it, and nothing that an engine misreads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

import toolkit
from tests import kubernetes_api
from toolkit.errors import GraphError
from toolkit.export.compose import render_compose
from toolkit.export.dockerfile import DISTRIBUTION, SERVED, render_dockerfile, render_ignore
from toolkit.export.kubernetes import INFLIGHT, KEDA, VERSION, build, render_manifests, validate
from toolkit.export.plan import Plan, plan_containers
from toolkit.export.swarm import render_stack
from toolkit.export.write import ENGINES, render
from toolkit.launcher.edges import Description
from toolkit.launcher.inspector import check_edges
from toolkit.launcher.manifest import Deployment, Graph, Image, load_graph
from toolkit.metrics import METRICS
from toolkit.spec import ReplicaSpec

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "services/inference_graph/graph.yaml"

COMPOSE_SCHEMA = Path("/usr/lib/python3/dist-packages/compose/config/compose_spec.json")
REQUIRES = [each for each in requires(DISTRIBUTION) or () if "extra ==" not in each]
TEXT, FRONT = "t.v1.Text", "f.v1.Front"
GRAPH = """\
name: shop
description: Sells things.
entry: front
env: {LEVEL: info}
images:
  default: {packages: [torch], fetch: [python, -m, m.prepare]}
  light: {}
services:
  my_model: {class: "m.text:Text", args: {size: 3}, device: cuda, replicas: 2, resources: {cpus: 2, memory: 1GiB}}
  other: {class: "m.text:Text", replicas: {min: 1, max: 4}, resources: {cpus: 0.5}, strategy: recreate}
  front: {class: "m.front:Front", host: 0.0.0.0, port: 50052, insecure: true, image: light, bind: {far: away}}
  away: {url: "dns:///models.example:443", tls: {}}
"""
BY_CALLS = GRAPH + "metrics: {}\n"
BY_KEDA = GRAPH + 'metrics: {keda: "http://prometheus.monitoring:9090"}\n'
DESCRIPTIONS = {
    "my_model": Description(TEXT, {}),
    "other": Description(TEXT, {}),
    "front": Description(FRONT, {"my_model": TEXT, "other": TEXT, "far": "a.v1.Away"}),
}


def plan(folder: Path, text: str = GRAPH, assign: tuple[str, ...] = ()) -> Plan:
    path = folder / "graph.yaml"
    path.write_text(text)
    return plan_containers(load_graph(path, (), assign), DESCRIPTIONS)


def compose(folder: Path, assign: tuple[str, ...] = (), text: str = GRAPH) -> Any:
    return yaml.safe_load(render_compose(plan(folder, text, assign), folder))


def stack(folder: Path, assign: tuple[str, ...] = ()) -> Any:
    return yaml.safe_load(render_stack(plan(folder, GRAPH, assign), folder))


def manifests(folder: Path, assign: tuple[str, ...] = (), text: str = GRAPH) -> dict[tuple[str, str], Any]:
    files = render_manifests(plan(folder, text, assign))
    found = [one for name in files if name != "kustomization.yaml" for one in yaml.safe_load_all(files[name])]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


@pytest.fixture(scope="module")
def descriptions() -> dict[str, Description]:
    """What the classes of the example declare: they are imported once, for that takes its time."""
    return check_edges(load_graph(EXAMPLE))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_example_is_exported_for_every_engine_and_always_the_same(
    engine: str, descriptions: dict[str, Description]
) -> None:
    graph = load_graph(EXAMPLE, (), ("graph.host=0.0.0.0", "graph.insecure=true"))
    first, second = (render(plan_containers(graph, descriptions), engine, ROOT, "1.0") for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("engine", "name", "folder"),
    [("compose", "docker-compose.yml", "."), ("dockerfile", "Dockerfile", "services/inference_graph")],
)
def test_what_is_committed_is_current(
    engine: str, name: str, folder: str, descriptions: dict[str, Description]
) -> None:
    plan = plan_containers(load_graph(EXAMPLE), descriptions)
    files = render(plan, engine, ROOT / folder, toolkit.__version__)
    assert (ROOT / folder / name).read_text() == files[name], "run scripts/generate"


def test_a_builder_that_reads_one_ignore_file_only_has_the_same() -> None:
    assert (ROOT / ".dockerignore").read_text() == (
        ROOT / "services/inference_graph/Dockerfile.dockerignore"
    ).read_text()


def test_compose_says_what_the_graph_file_says(tmp_path: Path) -> None:
    found = compose(tmp_path)["services"]
    model, front = found["my-model"], found["front"]
    assert (model["scale"], model["cpus"], model["mem_limit"]) == (2, "2", "1024m")
    assert model["deploy"]["resources"] == {
        "reservations": {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}
    }
    assert (model["environment"]["OMP_NUM_THREADS"], model["environment"]["LEVEL"]) == ("2", "info")
    assert front["ports"] == ["0.0.0.0:50052:50051"]
    assert front["depends_on"] == {host: {"condition": "service_healthy"} for host in ("my-model", "other")}
    assert model["depends_on"] == {"fetch-default": {"condition": "service_completed_successfully"}}
    assert (model["networks"], front["networks"]) == (["inside"], ["inside", "outside"])
    for service in found.values():
        assert (service["read_only"], service["cap_drop"], service["user"]) == (True, ["ALL"], "10001:10001")


@pytest.mark.skipif(
    not COMPOSE_SCHEMA.exists(), reason="Debian's docker-compose, which has the schema, is not installed"
)
def test_the_schema_of_compose_takes_it(tmp_path: Path) -> None:
    schema = json.loads(COMPOSE_SCHEMA.read_text())
    for text in (GRAPH, SECURED, SHARED):
        jsonschema.Draft201909Validator(schema).validate(compose(tmp_path, text=text))


NASTY = 'a "$HOME" ${x} $$ \' \\ # : - {'


@pytest.mark.parametrize("tool", [["docker-compose"], ["docker", "compose"]], ids=" ".join)
def test_docker_compose_reads_it_as_it_was_meant(tmp_path: Path, tool: list[str]) -> None:
    if not shutil.which(tool[0]) or subprocess.run([*tool, "version"], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {' '.join(tool)} to ask")
    made = plan(tmp_path, GRAPH, (f"front.env.NASTY={NASTY}",))
    (tmp_path / "docker-compose.yml").write_text(render_compose(made, tmp_path))
    done = subprocess.run([*tool, "config"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert interpolated(read["front"]["environment"]["NASTY"]) == NASTY
    assert (read["my-model"]["scale"], read["my-model"]["mem_limit"]) in ((2, "1024m"), (2, str(1 << 30)))


def test_a_replica_in_a_container_reads_its_own_specification(tmp_path: Path) -> None:
    found = compose(tmp_path)["services"]
    model = ReplicaSpec.from_environ(found["my-model"]["environment"])
    assert (model.service, model.args, model.device, model.listen) == (
        "m.text:Text",
        {"size": 3},
        "cuda:0",
        ("0.0.0.0:50051",),
    )
    front = ReplicaSpec.from_environ(found["front"]["environment"])
    assert front.addresses == {
        "my_model": ("dns:///my-model:50051",),
        "other": ("dns:///other:50051",),
        "away": ("dns:///models.example:443",),
    }
    assert front.bind == {"far": "away"}
    assert (front.outgoing["away"].tls, front.outgoing["away"].foreign) == (True, True)


def test_each_container_serves_its_metrics_where_the_graph_file_says_so(tmp_path: Path) -> None:
    found = plan(tmp_path, GRAPH + "metrics: {port: 9000}\n")
    assert {each.spec.metrics for each in found.containers} == {"0.0.0.0:9000"}
    assert {each.spec.metrics for each in plan(tmp_path).containers} == {""}
    with pytest.raises(GraphError, match=r"metrics.port: the calls of every container come in at 50051"):
        plan(tmp_path, GRAPH + "metrics: {port: 50051}\n")


def test_only_the_entry_is_published_and_on_the_loopback_by_default(tmp_path: Path) -> None:
    found = compose(tmp_path, ("front.host=", "front.port=", "front.insecure="))["services"]
    assert {name: each.get("ports") for name, each in found.items() if "ports" in each} == {
        "front": ["127.0.0.1:50051:50051"]
    }


def test_the_models_are_fetched_once_and_the_services_are_offline(tmp_path: Path) -> None:
    found = compose(tmp_path)
    fetch, model, front = (found["services"][name] for name in ("fetch-default", "my-model", "front"))
    assert (fetch["command"], fetch["networks"], fetch["volumes"]) == (
        ["python", "-m", "m.prepare"],
        ["outside"],
        ["models:/cache"],
    )
    assert (model["volumes"], model["environment"]["HF_HUB_OFFLINE"]) == (["models:/cache:ro"], "1")
    assert "volumes" not in front


SECURED = """\
name: shop
entry: front
tls: {ca: certs/ca.crt, cert: "certs/{deployment}.crt", key: "certs/{deployment}.key", mutual: true}
auth: {token_file: certs/token}
services:
  my_model: {class: "m.text:Text"}
  other: {class: "m.text:Text"}
  front: {class: "m.front:Front", tls: {allow: [client]}, bind: {far: other}}
"""
SHARED = """\
name: shop
entry: front
services:
  my_model: {class: "m.text:Text", process: my_pair, resources: {cpus: 2, memory: 1GiB}, device: cuda, env: {LEVEL: info}}
  front: {class: "m.front:Front", process: my_pair, resources: {cpus: 1, memory: 512MiB}, bind: {far: other}}
  other: {class: "m.text:Text"}
"""


def test_secrets_are_files_and_nobody_gets_those_of_others(tmp_path: Path) -> None:
    found = compose(tmp_path, text=SECURED)
    assert found["secrets"]["certs-front-key"] == {"file": "./certs/front.key"}
    given = {name: {each["source"] for each in one["secrets"]} for name, one in found["services"].items()}
    assert given["other"] == {"certs-ca-crt", "certs-other-crt", "certs-other-key", "certs-token"}
    front = ReplicaSpec.from_environ(found["services"]["front"]["environment"])
    assert front.incoming.key == "/run/secrets/certs-front-key"
    assert front.outgoing["my_model"].ca == "/run/secrets/certs-ca-crt"
    assert "-----" not in json.dumps(found)


def test_a_pod_with_tls_is_probed_by_the_script(tmp_path: Path) -> None:
    pods = manifests(tmp_path, text=SECURED)
    pod = pods["Deployment", "front"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["readinessProbe"]["exec"]["command"][-2:] == ["/opt/healthcheck.py", "127.0.0.1:50051"]
    assert pod["volumes"][-1]["secret"]["secretName"] == "shop"


def test_swarm_gets_nothing_that_it_refuses(tmp_path: Path) -> None:
    found = stack(tmp_path)
    refused = {"depends_on", "build", "security_opt", "restart", "pids_limit", "gpus"}
    assert all(refused.isdisjoint(service) for service in found["services"].values())
    model, other, front = (found["services"][name]["deploy"] for name in ("my-model", "other", "front"))
    assert (model["endpoint_mode"], front["endpoint_mode"]) == ("dnsrr", "vip")
    assert model["update_config"]["order"] == "start-first"
    assert other["update_config"]["order"] == "stop-first"
    assert model["resources"]["reservations"]["generic_resources"][0]["discrete_resource_spec"]["value"] == 1
    assert found["services"]["fetch-default"]["deploy"]["mode"] == "global-job"


@pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker client to ask")
def test_dockers_own_client_reads_the_stack(tmp_path: Path) -> None:
    nasty = 'front.env.NASTY=a "$HOME" ${x} $$ \' \\ # : - {'
    (tmp_path / "stack.yml").write_text(render_stack(plan(tmp_path, GRAPH, (nasty,)), tmp_path))
    done = subprocess.run(
        ["docker", "stack", "config", "-c", tmp_path / "stack.yml"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    read = yaml.safe_load(done.stdout)["services"]["front"]["environment"]["NASTY"]
    assert read.replace("$$", "$") == 'a "$HOME" ${x} $$ \' \\ # : - {'.replace("$$", "$")


def test_kubernetes_says_what_the_graph_file_says(tmp_path: Path) -> None:
    found = manifests(tmp_path)
    model = found["Deployment", "my-model"]["spec"]
    container = model["template"]["spec"]["containers"][0]
    assert (model["replicas"], model["strategy"]["type"]) == (2, "RollingUpdate")
    assert container["resources"]["limits"] == {"cpu": "2000m", "memory": str(1 << 30), "nvidia.com/gpu": "1"}
    assert (container["readinessProbe"]["grpc"], model["template"]["spec"]["terminationGracePeriodSeconds"]) == (
        {"port": 50051},
        40,
    )
    assert found["Service", "my-model"]["spec"]["clusterIP"] == "None"
    assert found["PodDisruptionBudget", "my-model"]["spec"]["maxUnavailable"] == 1
    other = found["HorizontalPodAutoscaler", "other"]["spec"]
    assert (other["minReplicas"], other["maxReplicas"]) == (1, 4)
    assert "replicas" not in found["Deployment", "other"]["spec"]
    assert found["Deployment", "other"]["spec"]["strategy"] == {"type": "Recreate"}


def test_kubernetes_counts_calls_where_prometheus_can_read_them(tmp_path: Path) -> None:
    assign = ("other.traffic={max_concurrency: 10}", "other.resources=")
    found = manifests(tmp_path, assign, GRAPH + "metrics: {port: 9500}\n")
    (metric,) = found["HorizontalPodAutoscaler", "other"]["spec"]["metrics"]
    target = {"type": "AverageValue", "averageValue": "7"}
    assert metric == {"type": "Pods", "pods": {"metric": {"name": INFLIGHT}, "target": target}}
    assert INFLIGHT in METRICS
    pod = found["Deployment", "other"]["spec"]["template"]
    assert pod["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9500",
        "prometheus.io/path": "/metrics",
    }
    assert pod["spec"]["containers"][0]["ports"][1] == {"name": "metrics", "containerPort": 9500}
    _, scraped = found["NetworkPolicy", "other"]["spec"]["ingress"]
    assert scraped == {"from": [{"namespaceSelector": {}}], "ports": [{"protocol": "TCP", "port": 9500}]}


def test_keda_scales_where_it_is_told_of_prometheus(tmp_path: Path) -> None:
    found = manifests(tmp_path, ("other.traffic={max_concurrency: 10}",), BY_KEDA)
    assert ("HorizontalPodAutoscaler", "other") not in found
    scaled = found["ScaledObject", "other"]["spec"]
    assert (scaled["scaleTargetRef"], scaled["minReplicaCount"], scaled["maxReplicaCount"]) == ({"name": "other"}, 1, 4)
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["query"] == f'sum({INFLIGHT}{{deployment=~"other"}})'
    assert (trigger["metadata"]["serverAddress"], trigger["metadata"]["threshold"]) == (
        "http://prometheus.monitoring:9090",
        "7",
    )
    assert validate(build(plan(tmp_path, BY_KEDA)))


def test_the_edges_of_the_graph_are_all_that_the_network_allows(tmp_path: Path) -> None:
    found = manifests(tmp_path)

    def names(peers: list[Any]) -> list[str]:
        return [peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for peer in peers]

    model, front = (found["NetworkPolicy", name]["spec"] for name in ("my-model", "front"))
    assert names(model["ingress"][0]["from"]) == ["front"]
    assert (model["egress"], front["ingress"][0].keys()) == ([], {"ports"})
    assert names(front["egress"][0]["to"]) == ["my-model", "other"]
    assert [peer["ipBlock"]["cidr"] for peer in front["egress"][1]["to"]] == ["0.0.0.0/0", "::/0"]


def test_kubernetes_own_schemas_take_it(tmp_path: Path) -> None:
    for text in (GRAPH, BY_CALLS, SECURED, SHARED):
        assert validate(build(plan(tmp_path, text))), "kubernetes-validate is not installed"


needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl to ask")
Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """`kubectl` with what it asks a server for: a cluster that has every kind of Kubernetes, and KEDA's."""
    folder = tmp_path_factory.mktemp("kubectl")
    keda = kubernetes_api.Kind(*KEDA.split("/"), "ScaledObject")
    with kubernetes_api.serve(VERSION, [keda]) as url:
        words = ["kubectl", "--kubeconfig", "/dev/null", "--cache-dir", folder, "--server", url]

        def run(*more: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
            return subprocess.run([*words, *more], input=said, capture_output=True, text=True, timeout=60, check=False)

        yield run


@needs_kubectl
def test_kustomize_takes_it(tmp_path: Path) -> None:
    _write(tmp_path, GRAPH)
    done = subprocess.run(["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(yaml.safe_load_all(done.stdout))) == len(build(plan(tmp_path)))


@needs_kubectl
@pytest.mark.parametrize("verb", ["create", "apply"])
@pytest.mark.parametrize(
    "text", [GRAPH, BY_CALLS, BY_KEDA, SECURED, SHARED], ids=["by CPU", "by calls", "by KEDA", "secured", "shared"]
)
def test_kubectl_would_make_what_was_written(tmp_path: Path, kubectl: Kubectl, text: str, verb: str) -> None:
    meant = _write(tmp_path, text)
    done = kubectl(verb, "--dry-run=client", "--validate=true", "--output=json", "--kustomize", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    would = [_as_written(each) for each in _documents(done.stdout)]
    assert sorted(would, key=_name) == sorted(meant, key=_name)


TRAPS = (
    *(
        "yes",
        "null",
        "~",
        "",
        "0x1F",
        "0o14",
        "1e3",
        "1_000",
        "12:30:45",
        "2001-01-01",
        "=",
        "<<",
        "!!int 1",
        "&a *a",
        "%YAML 1.2",
    ),
    *(
        "# a",
        "---",
        "...",
        "a: b",
        "- a",
        "[",
        "{{ .Values.a }}",
        " a ",
        "a\nb\n",
        "\n a\n\n",
        "\ta",
        "a\r\nb",
        "a" * 5000,
    ),
    *("\xa0", "\u2028", "\ufeff", "\U0001f600", "$(HOME)", "$$(HOME)", NASTY),
)


@needs_kubectl
def test_kubectl_reads_text_as_it_was_meant(tmp_path: Path, kubectl: Kubectl) -> None:
    """YAML and Kustomize are read by libraries of its own."""
    env = {f"TRAP_{number}": text for number, text in enumerate(TRAPS)}
    _write(tmp_path, GRAPH.replace("env: {LEVEL: info}\n", yaml.safe_dump({"env": env}, default_style='"')))
    done = kubectl("create", "--dry-run=client", "--output=json", "--kustomize", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (front,) = (each for each in _documents(done.stdout) if _name(each) == ("Deployment", "front"))
    read = {each["name"]: each["value"] for each in front["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert {name: interpolated(read[name]) for name in env} == env


@needs_kubectl
@pytest.mark.parametrize(
    ("kind", "path", "value", "expected"),
    [
        ("Deployment", ("kind",), "Deploymend", 'no matches for kind "Deploymend" in version "apps/v1"'),
        ("ScaledObject", ("apiVersion",), "keda.sh/v1", 'no matches for kind "ScaledObject" in version "keda.sh/v1"'),
        ("NetworkPolicy", ("spec", "policyType"), [], 'unknown field "policyType"'),
        ("Job", ("spec", "template", "spec", "containers", 0, "comand"), [], 'unknown field "comand"'),
        ("PodDisruptionBudget", ("spec", "selector"), "other", 'got "string", expected "map"'),
        ("Service", ("spec", "ports", 0, "port"), "http", 'got "string", expected "integer"'),
    ],
)
def test_kubectl_refuses_what_kubernetes_does_not_know(
    tmp_path: Path, kubectl: Kubectl, kind: str, path: Sequence[str | int], value: Any, expected: str
) -> None:
    """So that the test above can fail."""
    wrong = next(each for each in build(plan(tmp_path, BY_KEDA)) if each["kind"] == kind)
    place: Any = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    done = kubectl("create", "--dry-run=client", "--validate=true", "--filename=-", said=yaml.safe_dump(wrong))
    assert (done.returncode, done.stdout) == (1, "")
    assert expected in done.stderr


@needs_kubectl
def test_kubectls_own_types_hold_all_that_was_written_of_pods(tmp_path: Path, kubectl: Kubectl) -> None:
    """`--dry-run=client` keeps what it has no type for; what is given an account here is read into types and written again."""
    version = json.loads(kubectl("version", "--client", "--output=json").stdout)["clientVersion"]["gitVersion"]
    if Version(version.partition("-")[0]) < Version("1.30"):
        pytest.skip(f"kubectl {version} is older than what the manifests are for")
    meant = [each for each in build(plan(tmp_path)) if "template" in each["spec"]]
    meant[0]["spec"]["unheard"] = 1
    words = ("set", "serviceaccount", "--local", "--filename=-", "--output=json", "reader")
    done = kubectl(*words, said=yaml.safe_dump_all(meant))
    assert done.returncode == 0, done.stderr
    pairs = zip(meant, _documents(done.stdout), strict=True)
    assert [each for a, b in pairs for each in _missing(a, b)] == [".spec.unheard: 1, read as None"]


def _write(folder: Path, text: str) -> list[Any]:
    """The files that are exported, and what they are to say."""
    made = plan(folder, text)
    for name, each in render_manifests(made).items():
        (folder / name).write_text(each)
    return build(made)


def _documents(text: str) -> Iterator[Any]:
    """Of one JSON text after the other; kubectl makes a list of them where it is asked to create several."""
    while text := text.lstrip():
        one, end = json.JSONDecoder().raw_decode(text)
        yield from one["items"] if one["kind"] == "List" else [one]
        text = text[end:]


def _as_written(would: Any) -> Any:
    """Without what kubectl adds: the namespace, and what `apply` remembers."""
    added = {"namespace", "annotations"}
    return {**would, "metadata": {name: value for name, value in would["metadata"].items() if name not in added}}


def _name(document: Any) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def _missing(meant: Any, read: Any, key: str = "") -> list[str]:
    """What is in the one and not in the other. Quantities are text as Kubernetes writes them, and what is empty it leaves out."""
    if isinstance(meant, dict):
        return [each for name in meant for each in _missing(meant[name], (read or {}).get(name), f"{key}.{name}")]
    if isinstance(meant, list):
        pairs = zip(meant, read or [None] * len(meant), strict=True)
        return [each for number, (a, b) in enumerate(pairs) for each in _missing(a, b, f"{key}[{number}]")]
    is_quantity = ".resources." in key and isinstance(read, str)
    same = meant == read or is_quantity or (meant == "" and read is None)
    return [] if same else [f"{key}: {meant!r}, read as {read!r}"]


@pytest.mark.parametrize(
    ("engine", "assign", "expected"),
    [
        ("swarm", "front.host=127.0.0.1", "services.front.host: Swarm opens a port on every machine"),
        (
            "swarm",
            'my_model.device="cuda:1"',
            "services.my_model.device: Swarm gives GPUs by their count, and not cuda:1",
        ),
        ("kubernetes", "my_model.device=GPU-1", "services.my_model.device: Kubernetes gives GPUs by their count"),
        ("kubernetes", "other.resources=", "services.other.replicas: Kubernetes scales by the share of CPU in use"),
        (
            "kubernetes",
            "front.env.A=a\x85",
            "services.front: Kustomize does not hand on the control character U+0085 in A",
        ),
        ("compose", "my_model.device=mps", "services.my_model.device: mps is macOS's own"),
        ("compose", "away.url=unix:/run/x.sock", "services.away.url: unix:/run/x.sock is this machine"),
        ("compose", 'away.url="127.0.0.1:1"', "services.away.url: 127.0.0.1:1 is this machine"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_with_the_reason(
    tmp_path: Path, engine: str, assign: str, expected: str
) -> None:
    make = {"swarm": stack, "kubernetes": manifests, "compose": compose}[engine]
    with pytest.raises(GraphError) as caught:
        make(tmp_path, (assign,))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('files: ["a*"]', "images.light.files: 'a*': a Dockerfile reads * ? ["),
        ('files: ["a\\nb"]', "images.light.files: 'a\\nb': a Dockerfile reads"),
        ("files: [../a]", "images.light.files: '../a': only what is in the project's folder"),
        ("constraints: /a", "images.light.constraints: '/a': only what is in the project's folder"),
    ],
)
def test_a_file_that_no_dockerfile_can_copy_is_refused(tmp_path: Path, said: str, expected: str) -> None:
    made = plan(tmp_path, GRAPH.replace("light: {}", f"light: {{{said}}}"))
    with pytest.raises(GraphError) as caught:
        render_dockerfile(made, "1.0", REQUIRES)
    assert expected in str(caught.value)


def test_the_program_of_another_is_in_no_image_of_ours(tmp_path: Path) -> None:
    text = GRAPH.replace('class: "m.text:Text", replicas', "command: [./tagger], replicas")
    with pytest.raises(
        GraphError, match=r"services\.other\.command: what is in the image of another program is not known"
    ):
        plan(tmp_path, text)


def test_names_that_dns_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    text = 'name: g\nentry: a_b\nservices:\n  a_b: {class: "m:C"}\n  a-b: {class: "m:C"}\n'
    with pytest.raises(GraphError, match=r"services\.a-b: the same as 'a_b' in DNS"):
        plan(tmp_path, text)


def test_a_gpu_may_be_named_to_compose(tmp_path: Path) -> None:
    devices = compose(tmp_path, ('my_model.device="cuda:1"',))["services"]["my-model"]["deploy"]["resources"]
    assert devices["reservations"]["devices"][0]["device_ids"] == ["1"]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
nasty = texts | st.lists(
    st.sampled_from(
        [
            "$",
            "${A}",
            "$(A)",
            "$$",
            "{{.ID}}",
            "{{{",
            "'",
            '"',
            "\\",
            "\n",
            ": ",
            "# ",
            "- ",
            "{",
            "]",
            "&a",
            "*a",
            "!!x",
            "%",
            "\x85",
        ]
    )
    | st.sampled_from(
        ["yes", "null", "~", "0o17", "1e3", "0x1f", "1:30", "=", "<<", "\u2028", "\x7f", "é", "🜂", " ", "\t", "\r"]
    )
).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | nasty,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(nasty, inner, max_size=3),
    max_leaves=5,
)


def is_sayable(file: str) -> bool:
    """What the Dockerfile does not refuse."""
    odd = re.search(r"[*?\[\\\x00-\x1f\x7f]", file)
    return bool(file.strip()) and file == file.strip() and not odd and not file.startswith("/") and ".." not in file


def unescaped(text: str) -> str:
    """As Docker does where it replaces variables: any other `$` would be one."""
    assert re.fullmatch(r"(?:[^$\\]|\\[$\\])*", text, re.DOTALL), text
    return re.sub(r"\\(.)", r"\1", text)


@settings(max_examples=30, deadline=None)
@given(
    description=nasty,
    env=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), nasty, max_size=3),
    args=st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), json_values, max_size=3),
    fetch=st.lists(nasty, min_size=1, max_size=3),
    packages=st.lists(st.from_regex(r"[A-Za-z0-9][^\x00-\x1f]{0,20}", fullmatch=True), max_size=2),
    paths=st.lists(nasty.filter(is_sayable), max_size=3),
)
@example(description="", env={}, args={}, fetch=[""], packages=[], paths=["Dockerfile", "wheels"])
def test_whatever_is_in_a_graph_comes_out_as_it_went_in(
    description: str,
    env: dict[str, str],
    args: dict[str, Any],
    fetch: list[str],
    packages: list[str],
    paths: list[str],
) -> None:
    deployment = Deployment(service="m:C", env=env, args=args, insecure=True, host="0.0.0.0")  # type: ignore[call-arg]
    image = Image(packages=packages, fetch=fetch, files=paths)
    graph = Graph(
        path=ROOT / "graph.yaml",
        name="g",
        entry="a",
        services={"a": deployment},
        images={"default": image},
        description=description,
    )
    made = plan_containers(graph, {"a": Description("a.v1.A", {})})
    for text, read in ((render_compose(made, ROOT), str), (render_stack(made, ROOT), filled_in)):
        services = yaml.safe_load(text)["services"]
        _check({name: read(value) for name, value in services["a"]["environment"].items()}, env, args)
        assert [interpolated(part) for part in services["fetch-default"]["command"]] == fetch
    instructions = render_dockerfile(made, "1.0", REQUIRES).splitlines()
    _, install = [json.loads(line.removeprefix("RUN ")) for line in instructions if "--find-links" in line]
    assert install[-len(packages) :] == packages or not packages
    copied = [json.loads(line.removeprefix("COPY ")) for line in instructions if '"/app/' in line]
    assert [tuple(map(unescaped, each)) for each in copied] == [(path, f"/app/{path}") for path in paths]
    assert render_ignore(made).split("\n")[3:-3] == [f"!{path}" for path in dict.fromkeys(["Dockerfile", *paths])]
    assert all(re.match(r"(#|FROM|ARG|RUN|COPY|LABEL|ENV|WORKDIR|USER|CMD|$)", line) for line in instructions)
    if re.search(r"[\x7f-\x9f]", "".join([*env.values(), *fetch, json.dumps(args)])):
        with pytest.raises(GraphError, match="Kustomize does not hand on"):
            render_manifests(made)
        return
    files = render_manifests(made)
    (deployed,) = [one for one in yaml.safe_load_all(files["a.yaml"]) if one["kind"] == "Deployment"]
    pairs = deployed["spec"]["template"]["spec"]["containers"][0]["env"]
    _check({pair["name"]: pair["value"] for pair in pairs}, env, args)
    _, job = yaml.safe_load_all(files["models.yaml"])
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert [interpolated(part) for part in command[4:]] == fetch
    assert yaml.safe_load(files["kustomization.yaml"])["resources"] == ["models.yaml", "a.yaml"]


def _check(environment: dict[str, str], env: dict[str, str], args: dict[str, Any]) -> None:
    read = {name: interpolated(value) for name, value in environment.items()}
    assert {name: read[name] for name in env} == env
    assert ReplicaSpec.from_environ(read).args == args


def interpolated(text: str) -> str:
    """As these engines do: `$$` is `$`, and any other `$` would be a variable."""
    assert re.fullmatch(r"(?:[^$]|\$\$)*", text, re.DOTALL), text
    return text.replace("$$", "$")


def filled_in(text: str) -> str:
    """As Swarm does: `{{"{{"}}` is `{{`, and any other `{{` would begin a template."""
    parts = text.split('{{"{{"}}')
    assert not any("{{" in part for part in parts), text
    return "{{".join(parts)


def test_the_ignore_file_lets_in_what_the_dockerfile_copies(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    text = render_ignore(plan(tmp_path))
    assert text.splitlines()[2:] == ["*", "!Dockerfile", "!m", "!wheels", "**/__pycache__"]


def test_images_differ_where_needs_differ(tmp_path: Path) -> None:
    text = render_dockerfile(plan(tmp_path), "1.0", REQUIRES)
    assert re.findall(r"FROM (\S+) AS (\S+)", text) == [
        ("${BASE:-python:3.12-slim}", "common.build"),
        ("${RUNTIME:-${BASE:-python:3.12-slim}}", "common.run"),
        ("common.build", "build.default"),
        ("common.run", "default"),
        ("common.build", "build.light"),
        ("common.run", "light"),
    ]
    heavy, light = text.split("FROM common.build AS build.light")
    assert ('"torch"' in heavy, '"torch"' in light) == (True, False)
    assert 'CMD ["python", "-m", "toolkit.replica"]' in heavy
    assert all(stage.rstrip().endswith("USER 10001:10001") for stage in (heavy, light))


def test_the_command_line_is_in_an_image_that_fetches_and_in_no_other(tmp_path: Path) -> None:
    heavy, light = (
        text.partition("FROM common.run")[0]
        for text in render_dockerfile(plan(tmp_path), "1.0", REQUIRES).split(" AS build.")[1:]
    )
    assert heavy.count('"grpc-model-toolkit==1.0"') == 2  # with what it depends on, the second time
    assert light.count('"grpc-model-toolkit==1.0"') == 1
    assert {name for name in SERVED if f'"{name}<' in light} == {*SERVED}
    assert "rich" not in light


def test_a_replica_runs_without_what_only_the_command_line_needs() -> None:
    names = {Requirement(each).name for each in REQUIRES} - {*SERVED}
    modules = {
        module for module, owners in packages_distributions().items() if names & {each.lower() for each in owners}
    }
    assert {"typer", "yaml", "pydantic", "grpc_tools"} <= modules
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:])); import toolkit.replica, toolkit.connect, uvloop"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_deployments_that_share_a_process_share_a_container(tmp_path: Path) -> None:
    found = compose(tmp_path, text=SHARED)["services"]
    assert list(found) == ["my-pair", "other"]
    pair = found["my-pair"]
    assert (pair["ports"], pair["depends_on"]) == (
        ["127.0.0.1:50051:50051"],
        {"other": {"condition": "service_healthy"}},
    )
    assert (pair["cpus"], pair["mem_limit"]) == ("3", "1536m")
    assert (pair["environment"]["OMP_NUM_THREADS"], pair["environment"]["LEVEL"]) == ("3", "info")
    front = ReplicaSpec.from_environ(pair["environment"])
    (model,) = front.companions
    assert [(each.deployment, each.listen, each.device) for each in (front, model)] == [
        ("front", ("0.0.0.0:50051",), "cpu"),
        ("my_model", ("0.0.0.0:50052",), "cuda:0"),
    ]
    assert front.addresses["other"] == ("dns:///other:50051",)


def test_callers_find_each_member_of_a_container_at_its_own_port(tmp_path: Path) -> None:
    apart = SHARED.replace("process: my_pair, resources: {cpus: 1, memory: 512MiB}, ", "").replace(
        'other: {class: "m.text:Text"}',
        'other: {class: "m.text:Text", process: my_pair, resources: {cpus: 1, memory: 1GiB}}',
    )
    front = ReplicaSpec.from_environ(compose(tmp_path, text=apart)["services"]["front"]["environment"])
    assert {name: front.addresses[name] for name in ("my_model", "other")} == {
        "my_model": ("dns:///my-pair:50051",),
        "other": ("dns:///my-pair:50052",),
    }
    found = manifests(tmp_path, text=apart)
    pod, policy = found["Deployment", "my-pair"]["spec"]["template"]["spec"], found["NetworkPolicy", "front"]["spec"]
    assert [each["containerPort"] for each in pod["containers"][0]["ports"]] == [50051, 50052]
    assert [each["targetPort"] for each in found["Service", "my-pair"]["spec"]["ports"]] == ["grpc", "grpc-50052"]
    assert [each["port"] for each in policy["egress"][0]["ports"]] == [50051, 50052]
    entry = found["NetworkPolicy", "my-pair"]["spec"]["ingress"]
    assert [each["port"] for each in entry[0]["ports"]] == [50051, 50052]


@pytest.mark.parametrize(
    ("assign", "expected"),
    [
        ("front.image=light", "services.my_model.image: 'my_model' shares the container of 'front', which has another"),
        (
            "front.device=cuda:1",
            "services.my_model.device: a container has one GPU, which 'my_model' would share with 'front'",
        ),
    ],
)
def test_members_of_a_container_with_another_image_or_gpu_are_refused(
    tmp_path: Path, assign: str, expected: str
) -> None:
    with pytest.raises(GraphError) as caught:
        plan(tmp_path, SHARED + "images: {light: {}}\n", (assign,))
    assert expected in str(caught.value)
