"""graph → containers: what runs in each, whom it calls, and what it may use. Pure; each engine's builder starts from here."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from toolkit.errors import GraphError
from toolkit.launcher.document import Key
from toolkit.launcher.edges import Description, Edges, find_calls, find_edges, target
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Deployment, Graph, Image, Unit
from toolkit.launcher.placement import THREAD_VARIABLES
from toolkit.launcher.security import LOOPBACK
from toolkit.launcher.specify import specify
from toolkit.launcher.trust import Trust, plan_trust
from toolkit.spec import DNS, Outgoing, ReplicaSpec

PORT = 50051
"""Where every replica listens in its container; those that share its process have the next ones."""
USER = 10001
"""Who runs in a container: a number, so that an engine can see that it is not root."""
CACHE = "/cache"
PROBE = "/opt/healthcheck.py"
REPLICA = ("python", "-m", "toolkit.replica")
PROBING = ("python", "-S", "-E", PROBE, f"{LOOPBACK}:{PORT}")
SECRETS = "/run/secrets"
GRACE = 5.0
"""Seconds to exit, after a drain's own limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """What a container gets of the machine's GPUs; it sees nothing else."""

    id: str = ""
    """Its number or its UUID; empty: any one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Where outsiders call it."""

    host: str
    port: int
    target: int
    """Where it listens in its container."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """One process, as an engine runs it: a deployment, or those that share it."""

    unit: Unit
    host: str
    """Its name in the network: what the others resolve."""
    said: Deployment
    """By the first, with the resources and the GPU of all."""
    spec: ReplicaSpec
    """Of the first; the others are its companions."""
    environment: Mapping[str, str]
    calls: Sequence[str]
    """Hosts of those that it calls."""
    called_ports: Sequence[int]
    called_by: Sequence[str]
    calls_outside: bool
    """Some of those that it calls run elsewhere."""
    gpu: Gpu | None
    published: Sequence[Published]
    secrets: Sequence[str]

    @property
    def name(self) -> str:
        """Of the deployment that speaks for it, in the graph file."""
        return next(iter(self.unit.members))

    @property
    def runs(self) -> str:
        """The classes in it."""
        return ", ".join(each.service for each in self.unit.members.values())

    @property
    def ports(self) -> Mapping[int, bool]:
        """Where it listens → whether that takes TLS."""
        specs = (self.spec, *self.spec.companions)
        return {PORT + at: bool(each.incoming.cert) for at, each in enumerate(specs)}

    @property
    def tls(self) -> bool:
        """Where it is probed."""
        return self.ports[PORT]

    @property
    def stop_grace(self) -> int:
        """Seconds from SIGTERM to SIGKILL: its drain ends before."""
        return int(self.spec.drain_timeout + GRACE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A graph in containers."""

    graph: Graph
    containers: Sequence[Container]
    secrets: Mapping[str, Path]
    """Name → the file that holds it."""
    images: Mapping[str, Image]
    """Those that are used."""

    @property
    def fetches(self) -> Mapping[str, Sequence[str]]:
        """Image → the command that fills the cache."""
        return {name: image.fetch for name, image in self.images.items() if image.fetch}

    def image(self, name: str) -> str:
        """The tag of an image."""
        return f"{self.graph.name}-{name}:latest"


def plan_containers(graph: Graph, descriptions: Mapping[str, Description]) -> Plan:
    """Raises GraphError, a line for each thing that no container can do."""
    problems = list(_find_problems(graph))
    if problems:
        raise GraphError("\n".join(problems))
    edges = find_edges(graph, descriptions)
    trusts = plan_trust(graph, edges, tries_files=False)
    secrets = _Secrets(graph.path.parent.absolute())
    remotes = {
        name: {target(graph, name, handle) for handle in descriptions[name].handles} & {*graph.remotes}
        for name in graph.services
    }
    network = _Network(graph, edges, remotes)
    containers = [_container(graph, unit, network, trusts, secrets) for unit in graph.units.values()]
    images = {each.image: graph.images.get(each.image, Image()) for each in graph.services.values()}
    return Plan(graph=graph, containers=containers, secrets=secrets.found, images=images)


def host_name(deployment: str) -> str:
    """DNS knows no underscore."""
    return deployment.replace("_", "-")


class _Network:
    """Who calls whom, and where."""

    def __init__(self, graph: Graph, edges: Edges, remotes: Mapping[str, Collection[str]]) -> None:
        self.edges = edges
        self.remotes = remotes
        """Deployment → those elsewhere that it calls."""
        self.calls = find_calls(graph, edges)
        """Unit → the other units that it calls."""
        self.at = {
            member: (host_name(unit.name), PORT + number)
            for unit in graph.units.values()
            for number, member in enumerate(unit.members)
        }
        """Deployment → its host and its port there."""

    def addresses(self, name: str) -> dict[str, tuple[str, ...]]:
        """Of those that a deployment calls."""
        return {callee: (f"{DNS}{self.at[callee][0]}:{self.at[callee][1]}",) for callee in self.edges[name]}

    def ports(self, unit: Unit) -> list[int]:
        """Those that it calls of other units."""
        called = {callee for member in unit.members for callee in self.edges[member]} - {*unit.members}
        return sorted({self.at[callee][1] for callee in called})


def _container(
    graph: Graph, unit: Unit, network: _Network, trusts: Mapping[str, Trust], secrets: _Secrets
) -> Container:
    said = _together(unit)
    gpu = _gpu(said.device)
    mounted = {
        name: secrets.mounted(trusts[name], {*network.edges[name], *network.remotes[name]} - {*unit.members})
        for name in unit.members
    }
    first, *others = (_spec(graph, name, network, mounted[name]) for name in unit.members)
    spec = replace(first, companions=tuple(others), metrics=f"0.0.0.0:{graph.metrics.port}" if graph.metrics else "")
    variables = _variables(said, gpu, offline=bool(_image(graph, said).fetch))
    files = {path for each in mounted.values() for path in _files(each) if path}
    return Container(
        unit=unit,
        host=host_name(unit.name),
        said=said,
        spec=spec,
        environment={**variables, **said.env, **spec.to_environ()},
        calls=[host_name(each) for each in network.calls[unit.name]],
        called_ports=network.ports(unit),
        called_by=[host_name(each) for each, callees in network.calls.items() if unit.name in callees],
        calls_outside=any(network.remotes[name] for name in unit.members),
        gpu=gpu,
        published=[
            Published(host=graph.host(name), port=port, target=network.at[name][1])
            for name in unit.members
            if (port := graph.port(name))
        ],
        secrets=sorted({path.removeprefix(f"{SECRETS}/") for path in files}),
    )


def _spec(graph: Graph, name: str, network: _Network, trust: Trust) -> ReplicaSpec:
    listen = (f"0.0.0.0:{network.at[name][1]}",)
    return replace(
        specify(graph, name, listen=listen, addresses=network.addresses(name), trust=trust),
        device="cpu" if _gpu(graph.services[name].device) is None else "cuda:0",
        insecure=True,  # the engine's own network is private, and says who may come in
    )


def _together(unit: Unit) -> Deployment:
    """What is said of a process as a whole."""
    said = list(unit.members.values())
    resources = [each.resources for each in said]
    return replace(
        unit.said,
        env={name: value for each in said for name, value in each.env.items()},
        device=next((each.device for each in said if _gpu(each.device) is not None), unit.said.device),
        resources=replace(
            unit.said.resources,
            cpus=_sum(each.cpus for each in resources),
            memory=_sum(each.memory for each in resources),
            gpu_memory=_sum(each.gpu_memory for each in resources),
        ),
    )


N = TypeVar("N", int, float)


def _sum(amounts: Iterable[N | None]) -> N | None:
    """Of those that are said; None: nobody says one."""
    found = [each for each in amounts if each is not None]
    return sum(found[1:], start=found[0]) if found else None


def _image(graph: Graph, said: Deployment) -> Image:
    return graph.images.get(said.image, Image())


def _gpu(device: str) -> Gpu | None:
    """`auto` is the CPU: where it will run is not known here, and a container that asks for a GPU starts nowhere else."""
    if device in ("auto", "cpu"):
        return None
    return Gpu(id=device.removeprefix("cuda").removeprefix(":"))


def _variables(said: Deployment, gpu: Gpu | None, *, offline: bool) -> dict[str, str]:
    found = {"HF_HUB_OFFLINE": "1"} if offline else {}
    if gpu is None:
        found["CUDA_VISIBLE_DEVICES"] = ""
    if said.resources.cpus is not None:
        found |= dict.fromkeys(THREAD_VARIABLES, str(max(1, int(said.resources.cpus))))
    return {**found, "TOKENIZERS_PARALLELISM": "false"}


def _files(trust: Trust) -> Iterator[str]:
    incoming = trust.incoming
    yield from (incoming.cert, incoming.key, incoming.caller_ca, incoming.token_file)
    for each in trust.outgoing.values():
        yield from (each.ca, each.cert, each.key, each.token_file)


class _Secrets:
    """The files of a graph, each under one name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.found: dict[str, Path] = {}

    def mounted(self, trust: Trust, called: Collection[str]) -> Trust:
        """With the files where a container has them, and nothing of those that it does not call."""
        ours = trust.incoming
        incoming = replace(
            ours,
            cert=self._named(ours.cert),
            key=self._named(ours.key),
            caller_ca=self._named(ours.caller_ca),
            token_file=self._named(ours.token_file),
        )
        outgoing = {name: self._outgoing(each) for name, each in trust.outgoing.items() if name in called}
        return Trust(incoming=incoming, outgoing=outgoing)

    def _outgoing(self, theirs: Outgoing) -> Outgoing:
        return replace(
            theirs,
            ca=self._named(theirs.ca),
            cert=self._named(theirs.cert),
            key=self._named(theirs.key),
            token_file=self._named(theirs.token_file),
            insecure=theirs.insecure or not theirs.foreign,  # within the engine's network a token may go as it is
        )

    def _named(self, file: str) -> str:
        if not file:
            return ""
        path = Path(file)
        shown = path.relative_to(self._folder) if path.is_relative_to(self._folder) else Path(path.name)
        name = base = (
            "".join(char if char.isascii() and char.isalnum() else "-" for char in str(shown)).strip("-").lower()
        )
        number = 2
        while self.found.setdefault(name, path) != path:
            name, number = f"{base}-{number}", number + 1
        return f"{SECRETS}/{name}"


def _find_problems(graph: Graph) -> Iterator[str]:
    most = max(len(unit.members) for unit in graph.units.values())
    if graph.metrics is not None and graph.metrics.port in range(PORT, PORT + most):
        where = graph.where("metrics", "port")
        yield f"{where}: the calls of every container come in at {graph.metrics.port}; choose another port"
    hosts: dict[str, str] = {}
    for name, unit in graph.units.items():
        taken = hosts.setdefault(host_name(name), name)
        if taken != name:
            where = graph.where("services", next(iter(unit.members)))
            yield f"{where}: the same as {taken!r} in DNS, which knows no _; rename one of them"
    for name, said in graph.services.items():
        if said.device == "mps":
            yield f"{graph.where('services', name, 'device')}: mps is macOS's own, and not in containers; say cpu or cuda"
        if said.command:
            sentence = "what is in the image of another program is not known here; run it by itself, and say its url"
            yield f"{graph.where('services', name, 'command')}: {sentence}"
    for unit in graph.units.values():
        yield from _find_problems_together(graph, unit)
    for name, remote in graph.remotes.items():
        if remote.url.startswith("unix:") or _is_here(remote.url):
            yield (
                f"{graph.where('services', name, 'url')}: {remote.url} is this machine, which a container cannot call so; "
                "name the machine"
            )


def _find_problems_together(graph: Graph, unit: Unit) -> Iterator[str]:
    first, *others = unit.members
    for name in (each for each in others if unit.members[each].image != unit.said.image):
        where = graph.where("services", name, "image")
        yield f"{where}: {name!r} shares the container of {first!r}, which has another; say one for both"
    on_gpu = [name for name, each in unit.members.items() if _gpu(each.device) is not None]
    for name in on_gpu[1:]:
        devices = {unit.members[each].device for each in on_gpu}
        if len(devices) > 1 or any(unit.members[each].resources.exclusive for each in on_gpu):
            where = graph.where("services", name, "device")
            yield f"{where}: a container has one GPU, which {name!r} would share with {on_gpu[0]!r}; let them be two processes"


def _is_here(url: str) -> bool:
    host = url.removeprefix(DNS).rpartition(":")[0].strip("[]")
    return host == "localhost" or host.startswith("127.") or host == "::1"


def project_files(graph: Graph, image: str) -> list[str]:
    """What of the project goes into an image: what the file says, else the modules of the classes that run in it."""
    said = graph.images.get(image, Image()).files
    if said is not None:
        return list(said)
    folder = project_folder(graph.path)
    modules = [
        each.service.partition(".")[0].partition(":")[0] for each in graph.services.values() if each.image == image
    ]
    found = []
    for module in dict.fromkeys(modules):
        for path in (module, f"{module}.py"):
            if (folder / path).exists():
                found.append(path)
    return found


def refuse(graph: Graph, problems: Sequence[tuple[Key, str]]) -> None:
    """Raise GraphError where an engine cannot express a graph."""
    if problems:
        raise GraphError("\n".join(f"{graph.where(*map(str, key))}: {sentence}" for key, sentence in problems))
