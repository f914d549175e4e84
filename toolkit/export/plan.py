"""graph → containers: what runs in each, whom it calls, and what it may use. Pure; each engine's builder starts from here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toolkit.errors import GraphError
from toolkit.launcher.document import Key
from toolkit.launcher.edges import Description, find_edges, target
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Deployment, Graph, Image
from toolkit.launcher.placement import THREAD_VARIABLES
from toolkit.launcher.security import LOOPBACK
from toolkit.launcher.specify import specify
from toolkit.launcher.trust import Trust, plan_trust
from toolkit.spec import DNS, Outgoing, ReplicaSpec

PORT = 50051
"""Where every replica listens in its container."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """One deployment, as an engine runs it."""

    name: str
    """In the graph file."""
    host: str
    """Its name in the network: what the others resolve."""
    said: Deployment
    spec: ReplicaSpec
    environment: Mapping[str, str]
    calls: Sequence[str]
    """Hosts of those that it calls."""
    called_by: Sequence[str]
    calls_outside: bool
    """Some of those that it calls run elsewhere."""
    gpu: Gpu | None
    published: Published | None
    secrets: Sequence[str]

    @property
    def tls(self) -> bool:
        return bool(self.spec.incoming.cert)

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
    containers = [_container(graph, name, trusts[name], edges, remotes[name], secrets) for name in graph.services]
    images = {each.image: graph.images.get(each.image, Image()) for each in graph.services.values()}
    return Plan(graph=graph, containers=containers, secrets=secrets.found, images=images)


def host_name(deployment: str) -> str:
    """DNS knows no underscore."""
    return deployment.replace("_", "-")


def _container(
    graph: Graph,
    name: str,
    trust: Trust,
    edges: Mapping[str, Sequence[str]],
    remotes: Collection[str],
    secrets: _Secrets,
) -> Container:
    said = graph.services[name]
    gpu = _gpu(said.device)
    mounted = secrets.mounted(trust, {*edges[name], *remotes})
    addresses = {callee: (f"{DNS}{host_name(callee)}:{PORT}",) for callee in edges[name]}
    spec = replace(
        specify(graph, name, listen=(f"0.0.0.0:{PORT}",), addresses=addresses, trust=mounted),
        device="cpu" if gpu is None else "cuda:0",
        metrics=f"0.0.0.0:{graph.metrics.port}" if graph.metrics else "",
        insecure=True,  # the engine's own network is private, and says who may come in
    )
    port = graph.port(name)
    return Container(
        name=name,
        host=host_name(name),
        said=said,
        spec=spec,
        environment={**_variables(said, gpu, offline=bool(_image(graph, said).fetch)), **said.env, **spec.to_environ()},
        calls=[host_name(each) for each in edges[name]],
        called_by=[host_name(each) for each in graph.services if name in edges[each]],
        calls_outside=bool(remotes),
        gpu=gpu,
        published=Published(host=graph.host(name), port=port) if port else None,
        secrets=sorted({path.removeprefix(f"{SECRETS}/") for path in _files(mounted) if path}),
    )


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
    if graph.metrics is not None and graph.metrics.port == PORT:
        yield f"{graph.where('metrics', 'port')}: the calls of every container come in at {PORT}; choose another port"
    hosts: dict[str, str] = {}
    for name, said in graph.services.items():
        taken = hosts.setdefault(host_name(name), name)
        if taken != name:
            yield f"{graph.where('services', name)}: the same as {taken!r} in DNS, which knows no _; rename one of them"
        if said.device == "mps":
            yield f"{graph.where('services', name, 'device')}: mps is macOS's own, and not in containers; say cpu or cuda"
        if said.command:
            sentence = "what is in the image of another program is not known here; run it by itself, and say its url"
            yield f"{graph.where('services', name, 'command')}: {sentence}"
    for unit in graph.units.values():
        if len(unit.members) > 1:
            name = next(iter(unit.members))
            sentence = f"a container runs one deployment, and {unit.label} are several; take it out (process: ~)"
            yield f"{graph.where('services', name, 'process')}: {sentence}"
    for name, remote in graph.remotes.items():
        if remote.url.startswith("unix:") or _is_here(remote.url):
            yield (
                f"{graph.where('services', name, 'url')}: {remote.url} is this machine, which a container cannot call so; "
                "name the machine"
            )


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
