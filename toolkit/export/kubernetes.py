"""The plan → manifests for Kubernetes 1.30 or newer, a file for each deployment and a kustomization of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from toolkit.errors import ToolkitError
from toolkit.export.plan import CACHE, PORT, PROBING, REPLICA, SECRETS, USER, Container, Plan, host_name, refuse
from toolkit.export.yaml_text import Comments, comment, render
from toolkit.launcher.document import Key
from toolkit.launcher.scaling import DEFAULT_SCALING

Manifest = dict[str, Any]
FORGOTTEN_AFTER = 5
"""Seconds until nobody resolves a pod any more that is about to end."""
VERSION = "1.34"
"""Whose schemas the manifests are checked against."""
CACHE_SIZE = "20Gi"
INFLIGHT = "toolkit_server_inflight"
KEDA = "keda.sh/v1alpha1"
_BY_CPU = "By CPU, which every cluster measures. With metrics: {} in the graph file it is by calls."
_BY_CALLS = f"""By the calls that a pod handles, or that wait there, out of those that it may execute at once.
The cluster needs Prometheus, and prometheus-adapter that hands on {INFLIGHT} as a metric of pods."""
_BY_KEDA = f"""By {INFLIGHT}: the calls that pods handle, or that wait there. The cluster needs KEDA.
Where Prometheus reads this graph in several namespaces, add namespace="…" to the query in an overlay."""
_LOST = re.compile(r"[\x7f-\x9f]")
"""What Kustomize writes as it is, and then takes for a line's end or does not read."""
_MARK = "import pathlib, subprocess, sys; subprocess.run(sys.argv[2:], check=True); pathlib.Path(sys.argv[1]).touch()"
_WAIT = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists():\n    time.sleep(1)"


def render_manifests(plan: Plan) -> dict[str, str]:
    """File name → its text. Raises GraphError where Kubernetes cannot do it."""
    refuse(plan.graph, list(_find_problems(plan)))
    files = {f"{each.host}.yaml": [(about, one) for about, one in _manifests(plan, each)] for each in plan.containers}
    if plan.fetches:
        files = {"models.yaml": list(_models(plan)), **files}
    found = {name: "---\n".join(_text(about, one) for about, one in those) for name, those in files.items()}
    return {"kustomization.yaml": _text(_head(plan), _kustomization(plan, list(files))), **found}


def validate(documents: Sequence[Manifest]) -> bool:
    """Against the schemas of Kubernetes; False where kubernetes-validate is not installed. Raises ToolkitError."""
    try:
        import kubernetes_validate
    except ImportError:
        return False
    for document in documents:
        if document["apiVersion"] == KEDA:
            continue  # KEDA brings its own schemas to a cluster
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            what = f"{document['kind']} {document['metadata']['name']}"
            raise ToolkitError(f"{what}: not what Kubernetes {VERSION} takes: {error}; please report it") from None
    return True


def build(plan: Plan) -> list[Manifest]:
    """Every manifest as plain values, but for the kustomization."""
    models = [one for _, one in _models(plan)] if plan.fetches else []
    return [*models, *(one for each in plan.containers for _, one in _manifests(plan, each))]


def _find_problems(plan: Plan) -> Iterator[tuple[Key, str]]:
    for image, command in plan.fetches.items():
        if lost := _LOST.search("".join(command)):
            yield ("images", image, "fetch"), _lost_in("the command", lost[0])
    for each in plan.containers:
        key = ("services", each.name)
        for name, value in each.environment.items():
            if lost := _LOST.search(value):
                yield key, _lost_in(name, lost[0])
        if each.gpu is not None and each.gpu.id:
            yield (
                (*key, "device"),
                f"Kubernetes gives GPUs by their count, and not {each.said.device}; say device: cuda",
            )
        if _scales(each) and plan.graph.metrics is None and each.said.resources.cpus is None:
            by_cpu = "Kubernetes scales by the share of CPU in use; say how much that is: resources: {cpus: 2}"
            yield (*key, "replicas"), f"{by_cpu}; or let it count calls: metrics: {{}} beside services"


def _lost_in(what: str, lost: str) -> str:
    return f"Kustomize does not hand on the control character U+{ord(lost):04X} in {what}; say it without"


def _manifests(plan: Plan, each: Container) -> Iterator[tuple[str, Manifest]]:
    calls = ", ".join(each.calls) or "nobody"
    yield f"{each.runs}; calls {calls}.", _deployment(plan, each)
    yield (
        "Headless: its name stands for each pod, and callers balance by themselves. gRPC keeps its connections.",
        _service(plan, each),
    )
    yield "The edges of the graph: who may come in, and where it may go.", _network_policy(plan, each)
    if _scales(each):
        yield _scaler(plan, each)
    if each.said.replicas.min > 1:
        yield "A node may be emptied, one pod at a time.", _disruption_budget(plan, each)


def _deployment(plan: Plan, each: Container) -> Manifest:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    count = {} if _scales(each) else {"replicas": each.said.replicas.min}
    spec = {
        **count,
        "selector": {"matchLabels": _labels(plan, each)},
        "strategy": rolling if each.said.strategy == "rolling" else {"type": "Recreate"},
        "template": {"metadata": {"labels": _labels(plan, each), **_scraped(plan)}, "spec": _pod(plan, each)},
    }
    return _manifest(plan, "apps/v1", "Deployment", each.host, spec, _labels(plan, each))


def _scraped(plan: Plan) -> Manifest:
    """What a Prometheus that looks for pods goes by, as most are set up."""
    if plan.graph.metrics is None:
        return {}
    found = {"scrape": "true", "port": str(plan.graph.metrics.port), "path": "/metrics"}
    return {"annotations": {f"prometheus.io/{name}": value for name, value in found.items()}}


def _pod(plan: Plan, each: Container) -> Manifest:
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]
    found: Manifest = {
        **_secured_pod(),
        "terminationGracePeriodSeconds": FORGOTTEN_AFTER + each.stop_grace,
    }
    if each.said.replicas.max > 1:
        found["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": _labels(plan, each)},
            }
        ]
    if each.said.image in plan.fetches:
        volumes.append({"name": "models", "persistentVolumeClaim": {"claimName": _cache(plan), "readOnly": True}})
        mounts.append({"name": "models", "mountPath": CACHE, "readOnly": True})
        found["initContainers"] = [_waiting(plan, each, mounts)]
    if each.secrets:
        items = [{"key": name, "path": name} for name in each.secrets]
        secret = {"secretName": host_name(plan.graph.name), "items": items, "defaultMode": 0o440}
        volumes.append({"name": "secrets", "secret": secret})
        mounts.append({"name": "secrets", "mountPath": SECRETS, "readOnly": True})
    return {**found, "containers": [_container(plan, each, mounts)], "volumes": volumes}


def _container(plan: Plan, each: Container, mounts: Sequence[Manifest]) -> Manifest:
    ask = {"exec": {"command": list(PROBING)}} if each.tls else {"grpc": {"port": PORT}}
    ports = {_port_name(port): port for port in each.ports}
    if plan.graph.metrics:
        ports["metrics"] = plan.graph.metrics.port
    return {
        "name": "replica",
        "image": plan.image(each.said.image),
        "command": [escaped(part) for part in REPLICA],
        "env": [{"name": name, "value": escaped(value)} for name, value in each.environment.items()],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "startupProbe": {
            **ask,
            "periodSeconds": 2,
            "timeoutSeconds": 3,
            "failureThreshold": ceil(each.spec.start_timeout / 2),
        },
        "readinessProbe": {**ask, "periodSeconds": 5, "timeoutSeconds": 3},
        "livenessProbe": {**ask, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": FORGOTTEN_AFTER}}},
        "resources": _resources(each),
        "securityContext": _SECURED,
        "volumeMounts": [*mounts],
    }


def _resources(each: Container) -> Manifest:
    found: Manifest = {}
    if each.said.resources.cpus is not None:
        found["cpu"] = f"{ceil(each.said.resources.cpus * 1000)}m"
    if each.said.resources.memory is not None:
        found["memory"] = str(each.said.resources.memory)
    limits = {**found, "nvidia.com/gpu": "1"} if each.gpu is not None else found
    return {name: value for name, value in (("requests", found), ("limits", limits)) if value}


def _waiting(plan: Plan, each: Container, mounts: Sequence[Manifest]) -> Manifest:
    return {
        "name": "wait-for-models",
        "image": plan.image(each.said.image),
        "command": ["python", "-c", escaped(_WAIT), _marker(each.said.image)],
        "securityContext": _SECURED,
        "volumeMounts": [*mounts],
    }


def _service(plan: Plan, each: Container) -> Manifest:
    ports = [
        {
            "name": _port_name(port),
            "port": port,
            "targetPort": _port_name(port),
            "appProtocol": "https" if tls else "kubernetes.io/h2c",
        }
        for port, tls in each.ports.items()
    ]
    spec = {"clusterIP": "None", "selector": _labels(plan, each), "ports": ports}
    return _manifest(plan, "v1", "Service", each.host, spec, _labels(plan, each))


def _port_name(port: int) -> str:
    return "grpc" if port == PORT else f"grpc-{port}"


def _tcp(ports: Iterable[int]) -> list[Manifest]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def _network_policy(plan: Plan, each: Container) -> Manifest:
    callers = [_pods(plan, host) for host in each.called_by]
    ingress: list[Manifest] = [{"from": callers, "ports": _tcp(each.ports)}] if callers else []
    if each.published:  # outsiders too
        inside = {*each.ports} - {one.target for one in each.published}
        ingress = [
            {"ports": _tcp(one.target for one in each.published)},
            *([{"from": callers, "ports": _tcp(sorted(inside))}] if callers and inside else []),
        ]
    if plan.graph.metrics:
        ingress.append({"from": [{"namespaceSelector": {}}], "ports": _tcp([plan.graph.metrics.port])})
    to = [_pods(plan, host) for host in each.calls]
    egress: list[Manifest] = [{"to": to, "ports": _tcp(each.called_ports)}] if to else []
    if each.calls_outside:
        egress.append({"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]})
    if egress:
        egress.append({"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]})
    spec = {
        "podSelector": {"matchLabels": _labels(plan, each)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": ingress,
        "egress": egress,
    }
    return _manifest(plan, "networking.k8s.io/v1", "NetworkPolicy", each.host, spec, _labels(plan, each))


def _pods(plan: Plan, host: str) -> Manifest:
    return {"podSelector": {"matchLabels": _label(plan, host)}}


def _scales(each: Container) -> bool:
    return each.said.replicas.max > each.said.replicas.min


def _scaler(plan: Plan, each: Container) -> tuple[str, Manifest]:
    metrics = plan.graph.metrics
    if metrics is None:
        return _BY_CPU, _autoscaler(plan, each)
    return (
        (_BY_KEDA, _scaled_object(plan, each, metrics.keda)) if metrics.keda else (_BY_CALLS, _autoscaler(plan, each))
    )


def _scaled_object(plan: Plan, each: Container, prometheus: str) -> Manifest:
    names = "|".join(each.unit.members)
    asked = {
        "serverAddress": prometheus,
        "query": f'sum({INFLIGHT}{{deployment=~"{names}"}})',
        "threshold": str(_busy(each)),
        "ignoreNullValues": "false",
    }
    spec = {
        "scaleTargetRef": {"name": each.host},
        "minReplicaCount": each.said.replicas.min,
        "maxReplicaCount": each.said.replicas.max,
        "triggers": [{"type": "prometheus", "metadata": asked}],
    }
    return _manifest(plan, KEDA, "ScaledObject", each.host, spec, _labels(plan, each))


def _autoscaler(plan: Plan, each: Container) -> Manifest:
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": each.host},
        "minReplicas": each.said.replicas.min,
        "maxReplicas": each.said.replicas.max,
        "metrics": [_by_calls(each) if plan.graph.metrics else _by_cpu()],
    }
    return _manifest(plan, "autoscaling/v2", "HorizontalPodAutoscaler", each.host, spec, _labels(plan, each))


def _by_cpu() -> Manifest:
    target = {"type": "Utilization", "averageUtilization": round(100 * DEFAULT_SCALING.busy)}
    return {"type": "Resource", "resource": {"name": "cpu", "target": target}}


def _busy(each: Container) -> int:
    """Calls of a pod above which there should be more pods."""
    capacity = sum(one.max_concurrency for one in (each.spec, *each.spec.companions))
    return max(1, round(capacity * DEFAULT_SCALING.busy))


def _by_calls(each: Container) -> Manifest:
    return {
        "type": "Pods",
        "pods": {"metric": {"name": INFLIGHT}, "target": {"type": "AverageValue", "averageValue": str(_busy(each))}},
    }


def _disruption_budget(plan: Plan, each: Container) -> Manifest:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _labels(plan, each)}}
    return _manifest(plan, "policy/v1", "PodDisruptionBudget", each.host, spec, _labels(plan, each))


def _models(plan: Plan) -> Iterator[tuple[str, Manifest]]:
    labels = {"app.kubernetes.io/part-of": plan.graph.name}
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": CACHE_SIZE}}}
    about = "Filled once by the jobs below; the services read it, on whatever node they are, and are offline."
    yield about, _manifest(plan, "v1", "PersistentVolumeClaim", _cache(plan), claim, labels)
    for image, command in plan.fetches.items():
        marking = ["python", "-c", _MARK, _marker(image), *command]
        container = {
            "name": "fetch",
            "image": plan.image(image),
            "command": [escaped(part) for part in marking],
            "securityContext": _SECURED,
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "models", "mountPath": CACHE}],
        }
        pod = {
            **_secured_pod(),
            "restartPolicy": "OnFailure",
            "containers": [container],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "models", "persistentVolumeClaim": {"claimName": _cache(plan)}},
            ],
        }
        name = f"fetch-{host_name(image)}"
        spec = {"template": {"metadata": {"labels": labels}, "spec": pod}}
        yield (
            "Brings the models, and says so with a file that the services wait for.",
            _manifest(plan, "batch/v1", "Job", name, spec, labels),
        )


def _cache(plan: Plan) -> str:
    return f"{host_name(plan.graph.name)}-models"


def _marker(image: str) -> str:
    return f"{CACHE}/.fetched-{image}"


def _secured_pod() -> Manifest:
    who = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, **who, "seccompProfile": {"type": "RuntimeDefault"}},
    }


_SECURED: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def _labels(plan: Plan, each: Container) -> dict[str, str]:
    return _label(plan, each.host)


def _label(plan: Plan, host: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": host, "app.kubernetes.io/part-of": plan.graph.name}


def _manifest(plan: Plan, version: str, kind: str, name: str, spec: Manifest, labels: Mapping[str, str]) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": dict(labels)}, "spec": spec}


def _kustomization(plan: Plan, files: Sequence[str]) -> Manifest:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [*files],
        "images": [{"name": plan.image(name).partition(":")[0], "newTag": "latest"} for name in plan.images],
    }


def _head(plan: Plan) -> str:
    verb = f"`toolkit export kubernetes {plan.graph.path.name}`"
    made = f"{plan.graph.name}, made by {verb}: change that file, and export it again."
    usage = [
        "",
        "  kubectl apply --kustomize .",
        "",
        "What differs between clusters (namespace, registry, storage, nodes) is best said in an overlay of this folder.",
    ]
    if plan.secrets:
        files = " ".join(f"--from-file={name}={path.name}" for name, path in plan.secrets.items())
        usage += [
            "Before that, make the secret:",
            "",
            f"  kubectl create secret generic {host_name(plan.graph.name)} {files}",
        ]
    return "\n".join([made, *plan.graph.description.splitlines(), *usage])


def _text(about: str, one: Manifest) -> str:
    comments: Comments = {}
    return comment(about) + "\n" + render(one, comments)


def escaped(text: str) -> str:
    """The same, after Kubernetes has replaced what it takes for variables."""
    return text.replace("$", "$$")
