"""The graph file: YAML → a frozen `Graph`. Every error at once, each with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    with_config,
)

from toolkit.errors import GraphError
from toolkit.launcher.document import Document, Key, Place, Problem
from toolkit.launcher.hints import near, no_deployment
from toolkit.launcher.layers import KINDS, read_layers
from toolkit.launcher.security import LOOPBACK, Auth, Exposure, FilePath, Host, RemoteTls, Tls, find_faults, merge
from toolkit.spec import check_target

ENTRY_PORT = 50051
"""Where the entry listens when it says no port."""
METRICS_PORT = 9464
"""The field's own for applications that Prometheus reads."""
MAX_REPLICAS = 256

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_AMOUNT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)", re.ASCII)
_URL = re.compile(r"https?://[^\s/]+(/\S*)?", re.ASCII)
_NAME = re.compile(r"[a-z]([a-z0-9_-]{0,38}[a-z0-9])?", re.ASCII)
_REQUIREMENT = re.compile(r"[A-Za-z0-9][^\x00-\x1f]{0,500}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_METADATA_KEY = re.compile(r"(?!grpc-)[a-z0-9_.-]{1,100}", re.ASCII)
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?|(GPU|MIG)-[0-9A-Za-z/-]{1,80}", re.ASCII)


def parse_duration(value: object) -> float:
    """`60s`, `500ms`, `2m`, `1h` → seconds. Raises ValueError."""
    return _parse_amount(value, _SECONDS, "a duration with its unit, such as 500ms, 60s or 2m")


def parse_size(value: object) -> int:
    """`2GiB`, `512MiB`, `4GB` → bytes. Raises ValueError."""
    return int(_parse_amount(value, _BYTES, "a size with its unit, such as 512MiB or 2GiB"))


def _parse_amount(value: object, units: Mapping[str, float], kind: str) -> float:
    found = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] not in units or float(found[1]) == 0:
        raise ValueError(f"must be {kind}, not {_shown(value)}")
    return float(found[1]) * units[found[2]]


def _is_class_path(text: str) -> bool:
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _check(test: Any, expectation: str) -> AfterValidator:
    def validate(text: str) -> str:
        if not test(text):
            raise ValueError(f"must be {expectation}, not {_shown(text)}")
        return text

    return AfterValidator(validate)


def _shaped(pattern: str) -> WithJsonSchema:
    """What an editor can check of a text."""
    return WithJsonSchema({"type": "string", "pattern": f"^({pattern})$"})


_DURATION = rf"[0-9]+(\.[0-9]+)? ?({'|'.join(_SECONDS)})"
_SIZE = rf"[0-9]+(\.[0-9]+)? ?({'|'.join(_BYTES)})"
_IDENTIFIER = "[A-Za-z_][A-Za-z0-9_]*"

_Name = Annotated[
    str,
    _check(_NAME.fullmatch, "lower-case letters, digits, - or _, a letter first, 40 at most"),
    _shaped(_NAME.pattern),
]
_ClassPath = Annotated[str, _check(_is_class_path, 'shaped as "module:Class"'), _shaped(r"[^\s:]+:[^\s:]+")]
_DeviceName = Annotated[
    str,
    _check(_DEVICE.fullmatch, "auto, cpu, mps, cuda, cuda:N or a UUID (GPU-… or MIG-…)"),
    _shaped(_DEVICE.pattern),
]
_VariableName = Annotated[
    str, _check(_VARIABLE.fullmatch, "letters, digits and _, no digit first"), _shaped(_IDENTIFIER)
]
_Argument = Annotated[str, _check(str.isidentifier, "the name of an argument, as in the class")]
_Method = Annotated[str, _check(str.isidentifier, "the name of a method, as in the class or in the .proto")]
_Handle = Annotated[str, _check(str.isidentifier, "the name of a handle, as in the class")]
_Requirement = Annotated[
    str,
    _check(_REQUIREMENT.fullmatch, "a requirement as pip reads it, such as torch==2.13.0"),
    _shaped(_REQUIREMENT.pattern),
]
_Url = Annotated[
    str, _check(_URL.fullmatch, "an address such as http://prometheus.monitoring:9090"), _shaped(_URL.pattern)
]
_Duration = Annotated[float, BeforeValidator(parse_duration), _shaped(_DURATION)]
_Size = Annotated[int, BeforeValidator(parse_size), _shaped(_SIZE)]
_Ahead = Annotated[_Size, _check(lambda size: 0 < size <= 1 << 24, "a size of 16MiB at most")]
_Hedge = Annotated[
    float,
    BeforeValidator(lambda value: 0.0 if value == "auto" else parse_duration(value)),
    _shaped(f"auto|{_DURATION}"),
]
_Delay = Annotated[
    float,
    BeforeValidator(lambda value: 0.0 if value in ("0s", "0ms") else parse_duration(value)),
    _shaped(_DURATION),
]
_MetadataKey = Annotated[str, _check(_METADATA_KEY.fullmatch, "a metadata key: a-z, 0-9, _ . - and not grpc-…")]
_Limits = Mapping[
    str, Annotated[_Size, _check(lambda size: 0 < size < 1 << 31, "a size below 2GiB, where protobuf ends")]
]
_MessageLimits = Annotated[
    _Limits,
    BeforeValidator(
        lambda value: value if isinstance(value, Mapping) else {"*": value}, json_schema_input_type=_Size | _Limits
    ),
]

_strict = with_config(ConfigDict(strict=True, extra="forbid"))
_Port = Annotated[int, Field(ge=1, le=65535)]
_Count = Annotated[int, Field(ge=1, le=MAX_REPLICAS)]


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Replicas:
    """How many processes of a deployment: as many from `min` to `max` as its calls need. `replicas: 2` is both."""

    min: _Count = 1
    """Those that always run."""
    max: _Count
    """Never more."""


ONE = Replicas(max=1)


def _read_replicas(value: object) -> object:
    """A number stands for a mapping; what is wrong with it is told of the number."""
    if isinstance(value, Mapping):
        return value
    if type(value) is not int:
        raise ValueError(f"must be a whole number, or a mapping with min and max, not {_shown(value)}")
    if not 1 <= value <= MAX_REPLICAS:
        raise ValueError(f"must be at {'least 1' if value < 1 else f'most {MAX_REPLICAS}'}, not {value}")
    return {"min": value, "max": value}


def _read_url(text: str) -> str:
    try:
        check_target(text)
    except ValueError:
        raise ValueError(f"must be dns:///HOST:PORT, HOST:PORT or unix:/absolute/path, not {_shown(text)}") from None
    return text


def _check_order(replicas: Replicas) -> Replicas:
    if replicas.min > replicas.max:
        raise ValueError(f"min is {replicas.min}, and max only {replicas.max}")
    return replicas


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one replica may use."""

    cpus: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Cores; they set its thread pools. None: an equal share of what the others leave."""
    memory: _Size | None = None
    """Bytes. A replica that takes more is ended."""
    gpu_memory: _Size | None = None
    """Bytes of a GPU that are kept for it, and beyond which torch refuses to allocate. None: it shares a GPU uncounted."""
    exclusive: bool = False
    """Its GPU is shared with nobody."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What one replica takes on."""

    timeout: _Duration | None = None
    """Seconds that a call may take when its caller sets no deadline."""
    idle_timeout: _Duration | None = None
    """Seconds that a stream may take to make its next item; without, its deadline is the only limit."""
    max_concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Calls executing at once."""
    max_queue: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Calls waiting for a turn."""
    max_outstanding: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Calls of one handle at once: what one slow dependency may hold of a replica."""
    hedge: _Hedge | None = None
    """After so long a call of an idempotent method is sent to another replica too; `auto`: worked out from the latencies
    seen."""
    ahead: _Ahead | None = None
    """Bytes that the writer of a stream may be ahead of its reader; one item always may. Without: 4KiB."""
    max_message: _MessageLimits | None = None
    """Method → largest request or reply in bytes; one size stands for every method, and so does the key `*`."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How the calls of one batched method are put together. None: as its decorator says."""

    max_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests of a batch."""
    max_delay: _Delay | None = None
    """How long an idle model waits for more, where more are expected; `0ms`: it never waits."""
    max_cost: Annotated[float, Field(gt=0)] | None = None
    """What the requests of a batch may cost together, where the class has a cost function."""
    max_queue: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests that wait for a batch."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What `toolkit export` puts into a container image; `toolkit up` takes no notice of it."""

    packages: Sequence[_Requirement] = ()
    """What pip installs beside the toolkit and what its replicas need. A project that imports more says so here."""
    bare: Sequence[_Requirement] = ()
    """What pip installs without what it depends on."""
    constraints: FilePath | None = None
    """A file of exact versions for pip, relative to the project's folder."""
    files: Sequence[FilePath] | None = None
    """Of the project, relative to its folder. None: the modules of the classes."""
    fetch: Annotated[Sequence[str], Field(max_length=1000)] = ()
    """The command that fills the cache of models, once, before the services start; these are offline then."""


DEFAULT_IMAGE = "default"


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """An entry of `services` that runs here: one class, or one command, as some replicas. None: the replica's own default."""

    service: Annotated[_ClassPath, Field(alias="class")] = ""
    """`module:Class`, imported from the project's folder."""
    command: Annotated[Sequence[Annotated[str, Field(min_length=1)]], Field(max_length=1000)] = ()
    """Instead of a class: a program and its arguments, in any language. It listens at the `HOST:PORT` in `TOOLKIT_LISTEN`, or
    where its arguments say `{listen}`, `{host}` and `{port}`, serves `grpc.health.v1`, and drains at SIGTERM."""
    args: Mapping[_Argument, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    device: _DeviceName = "auto"
    """`auto`: a GPU, and the CPU where the machine has none."""
    on_unsatisfiable: Literal["error", "cpu"] = "error"
    """When no GPU has what it asks for: refuse to start, or take the CPU."""
    replicas: Annotated[
        Replicas,
        BeforeValidator(_read_replicas, json_schema_input_type=_Count | Replicas),
        AfterValidator(_check_order),
    ] = ONE
    """How many processes, or the least and the most of them."""
    strategy: Literal["rolling", "recreate"] = "rolling"
    """How its replicas are replaced: a new one is ready before an old one leaves, or all leave before a new one starts."""
    process: _Name | None = None
    """Those that name the same one share it: a replica of each in one process, where they call one another directly."""
    resources: Resources = Resources()
    """What one replica may use."""
    env: Mapping[_VariableName, str] = field(default_factory=dict)
    """Environment variables; they win over those that placement sets."""
    traffic: Traffic = Traffic()
    """What one replica takes on."""
    batching: Mapping[_Method, Batching] = field(default_factory=dict)
    """Batched method → its limits, where they are not those of its decorator."""
    bind: Mapping[_Handle, _Name] = field(default_factory=dict)
    """Handle → deployment, where the two names differ."""
    port: _Port | None = None
    """TCP port, beside the socket that the other replicas use."""
    host: Host | None = None
    """Where the port is open. None: on 127.0.0.1, for this machine only."""
    tls: Tls | None = None
    """Encryption, and whose certificates are accepted."""
    auth: Auth | None = None
    """The token that callers send."""
    insecure: bool = False
    """Open to a network though callers need neither TLS nor a token."""
    image: _Name = DEFAULT_IMAGE
    """The entry of `images` that it runs from in a container; those with the same needs share one."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteTraffic:
    """How a deployment that runs elsewhere is called."""

    hedge: _Hedge | None = None
    """As in `traffic` of a class."""
    ahead: _Ahead | None = None
    """As in `traffic` of a class."""
    max_message: _MessageLimits | None = None
    """As in `traffic` of a class."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """An entry of `services` that runs elsewhere already, and is only called."""

    url: Annotated[str, AfterValidator(_read_url)]
    """`dns:///host:50051` (each address of the host is a replica), `host:50051`, or `unix:/absolute/path`."""
    traffic: RemoteTraffic = RemoteTraffic()
    """How it is called."""
    tls: RemoteTls | None = None
    """Call it over TLS. `tls: {}` trusts the public authorities."""
    auth: Auth | None = None
    """The token that it wants."""
    insecure: bool = False
    """Send the token even where the network can read it."""


def _kind(value: object) -> str:
    """Which of the two an entry is to be read as."""
    return "url" if isinstance(value, Remote) or (isinstance(value, Mapping) and "url" in value) else "class"


_Entry = Annotated[Annotated[Deployment, Tag("class")] | Annotated[Remote, Tag("url")], Discriminator(_kind)]


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Where Prometheus reads what was measured: `http://…:PORT/metrics`."""

    port: _Port = METRICS_PORT
    """`toolkit up`: of the whole graph, on 127.0.0.1, unless `--metrics HOST:PORT` says otherwise. `toolkit export`: of each
    container, within the engine's own network."""
    keda: _Url | None = None
    """`toolkit export kubernetes`: the address of Prometheus, which KEDA asks in order to scale. None: an autoscaler."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class GraphFile:
    """What runs, on what, how many."""

    name: _Name
    """Of the graph."""
    entry: str
    """The deployment that outsiders call."""
    services: Mapping[_Name, _Entry]
    """Its deployments, by name."""
    description: str = ""
    """What it is for."""
    env: Mapping[_VariableName, str] = field(default_factory=dict)
    """Environment variables of every deployment; a deployment's own win."""
    images: Mapping[_Name, Image] = field(default_factory=dict)
    """Container images, by name; `default` is that of deployments that name none."""
    forward: Sequence[_MetadataKey] = ()
    """Metadata keys that go on with every call, beside the request id and the trace context."""
    tls: Tls | None = None
    """Encryption, for all; in a deployment for what differs there."""
    auth: Auth | None = None
    """The token that callers send, for all."""
    metrics: Metrics | None = None
    """Where Prometheus reads what was measured. None: nowhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """What runs as one process: a deployment, or several that share it."""

    name: str
    members: Mapping[str, Deployment]
    """The first speaks for all: the entry, where it is one of them. What holds for a process as a whole they say alike."""

    @property
    def label(self) -> str:
        """`gpt2`, or `front (a, b)`."""
        return f"{self.name} ({', '.join(self.members)})" if len(self.members) > 1 else self.name

    @property
    def said(self) -> Deployment:
        """By the first."""
        return next(iter(self.members.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """What a graph file declares. The edges are not here: they live in the classes."""

    path: Path
    name: str
    entry: str
    """The deployment that outsiders call."""
    services: Mapping[str, Deployment]
    remotes: Mapping[str, Remote] = field(default_factory=dict)
    """Those that run elsewhere."""
    forward: Sequence[str] = ()
    """Metadata keys that go on with every call, beside the request id and the trace context."""
    absent: Sequence[str] = ()
    """Deployments of the file that are not brought up, though others may call them."""
    description: str = ""
    """What it is for, in the words of the file."""
    images: Mapping[str, Image] = field(default_factory=dict)
    """Those that the file describes."""
    metrics: Metrics | None = None
    """Where they are read."""
    overrides: Sequence[Path] = ()
    """Files that were laid over it."""
    places: Mapping[Key, Place] = field(default_factory=dict, repr=False)

    @property
    def units(self) -> dict[str, Unit]:
        """By name, in the order of the file."""
        found: dict[str, dict[str, Deployment]] = {}
        for name, each in self.services.items():
            own = found.setdefault(each.process or name, {})
            found[each.process or name] = {name: each, **own} if name == self.entry else {**own, name: each}
        return {name: Unit(name=name, members=members) for name, members in found.items()}

    def port(self, deployment: str) -> int | None:
        """Its TCP port: what the file says, and `ENTRY_PORT` for an entry that says nothing."""
        said = self.services[deployment].port
        return ENTRY_PORT if said is None and deployment == self.entry else said

    def host(self, deployment: str) -> str:
        """Where its port is open."""
        return self.services[deployment].host or LOOPBACK

    def where(self, *key: str) -> str:
        """`graph.yaml:7: services.gpt2.device`, the start of a sentence about it."""
        return f"{self.place(key)}: {'.'.join(key)}"

    def place(self, key: Key) -> Place:
        """Of `key`, or of the nearest thing around it."""
        return Document((str(self.path),), None, self.places).place(key)

    def said_at(self, deployment: str, *key: str) -> tuple[str, ...]:
        """Where the file says `key` for a deployment: there, or at its top, which then holds for all."""
        own = ("services", deployment, *key)
        is_above = key in self.places or (own[:3] not in self.places and key[:1] in self.places)
        return key if own not in self.places and is_above else own


def load_graph(path: Path, overrides: Sequence[Path] = (), assignments: Sequence[str] = ()) -> Graph:
    """Read and check a graph file, and what is laid over it: files, and texts like `gpt2.replicas=2`.

    Raises GraphError, a line for each problem: `file:line: services.gpt2.device: …`.
    """
    document = read_layers(path, overrides, assignments)
    if not isinstance(document.values, dict):
        found = _shown(document.values)
        raise GraphError(f"{path}:1: must be a mapping with the keys name, entry and services, not {found}")
    file, problems = _validate(document)
    problems += _cross_check(document)
    problems += document.problems
    graph = None if file is None else _graph(path, file, document, overrides)
    problems += [] if graph is None else [*_check_security(graph), *_check_devices(graph), *_check_processes(graph)]
    if problems or graph is None:
        order = sorted(problems, key=lambda each: (document.sources.index(each.place.source), each.place.line))
        raise GraphError("\n".join(dict.fromkeys(map(str, order))))
    return graph


def _graph(path: Path, file: GraphFile, document: Document, overrides: Sequence[Path]) -> Graph:
    """What the top of the file says for all is said by each deployment from here on."""
    services = {
        name: replace(each, env={**file.env, **each.env}, tls=merge(file.tls, each.tls), auth=each.auth or file.auth)
        for name, each in file.services.items()
        if isinstance(each, Deployment)
    }
    return Graph(
        path=path,
        name=file.name,
        description=file.description,
        entry=file.entry,
        services=services,
        remotes={name: each for name, each in file.services.items() if isinstance(each, Remote)},
        forward=file.forward,
        images=file.images,
        metrics=file.metrics,
        overrides=tuple(overrides),
        places=document.places,
    )


def _check_security(graph: Graph) -> Iterator[Problem]:
    for name, each in graph.services.items():
        exposure = Exposure(
            host=each.host,
            port=graph.port(name),
            tls=each.tls,
            auth=each.auth,
            insecure=each.insecure,
            is_entry=name == graph.entry,
        )
        for said, sentence in find_faults(exposure):
            key = graph.said_at(name, *said)
            yield Problem(graph.place(key), key, sentence)


def _check_devices(graph: Graph) -> Iterator[Problem]:
    for name, each in graph.services.items():
        said = {"gpu_memory": each.resources.gpu_memory is not None, "exclusive": each.resources.exclusive}
        for option in (option for option, is_said in said.items() if is_said and each.device == "cpu"):
            key = ("services", name, "resources", option)
            yield Problem(graph.place(key), key, "is said of a GPU, and the device is cpu; take one of the two out")


def _check_processes(graph: Graph) -> Iterator[Problem]:
    for name, unit in graph.units.items():
        yield from find_conflicts(graph, unit.members)
        yield from _check_alike(graph, unit)
        for member in (each for each, said in unit.members.items() if said.process and name != each):
            if name in graph.remotes or (name in graph.services and graph.services[name].process != name):
                key = ("services", member, "process")
                yield Problem(
                    graph.place(key), key, f"{name!r} is a deployment that does not say so; name it otherwise"
                )


_OF_A_PROCESS: Mapping[tuple[str, ...], Callable[[Deployment], object]] = {
    ("replicas",): lambda each: each.replicas,
    ("strategy",): lambda each: each.strategy,
    ("resources", "cpus"): lambda each: each.resources.cpus is None,
    ("resources", "memory"): lambda each: each.resources.memory is None,
}
"""What a process is or has as a whole. Amounts add up, so that all say one or none does."""


def _check_alike(graph: Graph, unit: Unit) -> Iterator[Problem]:
    first, *others = unit.members
    for name in others:
        for option, seen in _OF_A_PROCESS.items():
            if seen(unit.members[name]) != seen(unit.said):
                key = ("services", name, *option)
                how = "is said of one of the two" if option[0] == "resources" else f"is another than that of {first!r}"
                sentence = f"{how}, and {name!r} shares the process {unit.name!r} with {first!r}; say it of both alike"
                yield Problem(graph.place(key), key, sentence)


def find_conflicts(graph: Graph, members: Iterable[str]) -> Iterator[Problem]:
    """Variables that these deployments, in one process, say differently."""
    said_by: dict[str, str] = {}
    for name in members:
        env = graph.services[name].env
        for variable, value in env.items():
            other = said_by.setdefault(variable, name)
            if graph.services[other].env[variable] != value:
                key = graph.said_at(name, "env", variable)
                sentence = f"{other!r} says another value, and they share one process, which has one environment"
                yield Problem(graph.place(key), key, sentence)


_adapter = TypeAdapter(GraphFile)


def _validate(document: Document) -> tuple[GraphFile | None, list[Problem]]:
    try:
        return _adapter.validate_json(json.dumps(document.values)), []
    except ValidationError as invalid:
        return None, list(_describe(document, cast("list[dict[str, Any]]", invalid.errors(include_url=False))))


def _describe(document: Document, errors: Iterable[Mapping[str, Any]]) -> Iterator[Problem]:
    ill_read = {problem.key for problem in document.problems}
    for error in errors:
        key, entry = _as_written(tuple(part for part in error["loc"] if part != "[key]"))
        is_told = entry is Remote and error["type"] == "unexpected_keyword_argument" and key[-1] in KINDS
        if key not in ill_read and not is_told:  # `_check_kind` has a better sentence
            yield document.problem(key, _sentence(error, key, entry))


def _as_written(loc: Key) -> tuple[Key, type]:
    """The key in the file, and what its entry was read as: that follows the entry's name."""
    if len(loc) < 3 or loc[0] != "services":
        return loc, Deployment
    return (*loc[:2], *loc[3:]), Remote if loc[2:3] == ("url",) else Deployment


_HINTS = {
    "name": "name: my-graph",
    "entry": "entry: the deployment that outsiders call",
    "token_file": "token_file: the path of a file with a token in it",
    "max": "max: the most replicas at once",
    "services": "services: with at least one deployment",
}


def _sentence(error: Mapping[str, Any], key: Key, entry: type) -> str:
    shown, context = _shown(error["input"]), error.get("ctx", {})
    match error["type"]:
        case "missing":
            return f"missing; add {_HINTS[str(key[-1])]}"
        case "unexpected_keyword_argument":
            return _unknown_key(key, entry)
        case "value_error":
            return str(context["error"])
        case "greater_than_equal":
            return f"must be at least {context['ge']}, not {shown}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}, not {shown}"
        case "literal_error":
            return f"must be {context['expected'].replace(chr(39), '')}, not {shown}"
        case "greater_than":
            return f"must be more than {context['gt']:g}, not {shown}"
        case kind if kind in _KINDS:
            return f"must be {_KINDS[kind]}, not {shown}"
    return str(error["msg"])


_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
_SAID_ELSEWHERE = {
    "scaling": "replicas: {min: 1, max: 5}",
    "deployment_strategy": "strategy: rolling, or strategy: recreate",
    "instance_type": "resources and device",
    "gpu": "device: cuda",
    "max_replicas": "replicas: {min: 1, max: 5}",
}
"""What others call a thing → what it is called here."""


def _unknown_key(key: Key, entry: type) -> str:
    name = str(key[-1])
    if name in _SAID_ELSEWHERE:
        return f"unknown key; say {_SAID_ELSEWHERE[name]}"
    known = _known_keys(key, entry)
    if entry is Remote and name in _known_keys(key, Deployment):
        return f"not for what runs elsewhere; known here: {', '.join(known)}"
    return f"unknown key; {near(name, known) or 'known here: ' + ', '.join(known)}"


def _known_keys(key: Key, entry: type) -> list[str]:
    if len(key) == 1:
        return _keys(GraphFile)
    if len(key) == 3:
        return _keys(entry)
    if key[0] == "images":
        return _keys(Image)
    if key[2:3] == ("batching",):
        return _keys(Batching)
    inside = {"tls": Tls, "traffic": Traffic, "resources": Resources, "replicas": Replicas, "auth": Auth}
    remote = {"tls": RemoteTls, "traffic": RemoteTraffic} if entry is Remote else {}
    return _keys({**inside, **remote}[str(key[-2])])


def _keys(of: type) -> list[str]:
    assert is_dataclass(of)
    return ["class" if each.name == "service" else each.name for each in fields(of)]


def _cross_check(document: Document) -> list[Problem]:
    """What no single key shows. The values may still be of any type here."""
    values = document.values
    services = _as(dict, values.get("services"))
    if services is None:
        return []
    if not services:
        return [document.problem(("services",), "empty; a graph needs at least one deployment")]
    entry = values.get("entry")
    found = list(_check_ports(document, services, entry))
    if isinstance(entry, str) and entry not in services:
        found.append(document.problem(("entry",), no_deployment(entry, services)))
    for name, service in services.items():
        found += _check_kind(document, services, name, service)
        found += _check_image(document, name, _get(service, "image"))
        found += _check_bind(document, services, name, _as(dict, _get(service, "bind")) or {})
        found += _check_env(document, ("services", name, "env"), _get(service, "env"))
    return [*found, *_check_env(document, ("env",), values.get("env"))]


def _check_kind(document: Document, services: Mapping[str, Any], name: str, service: Any) -> Iterator[Problem]:
    """An entry is one of a class, a command and a url; what the graph is called by runs here."""
    if not isinstance(service, dict):
        return
    said = [kind for kind in KINDS if kind in service]
    key: Key = ("services", name)
    if not said:
        yield document.problem((*key, "class"), _no_kind(document, services, name))
    elif len(said) > 1:
        yield document.problem((*key, said[1]), f"{said[0]} is there too; a deployment is one of {', '.join(KINDS)}")
    if "command" in said:
        yield from _check_command(document, name, service)
    if "url" in said and document.values.get("entry") == name:
        yield document.problem((*key, "url"), "the entry runs here; let another deployment be the entry")


def _check_command(document: Document, name: str, service: Mapping[str, Any]) -> Iterator[Problem]:
    key: Key = ("services", name)
    for option in _OF_A_CLASS:
        if option in service:
            yield document.problem((*key, option), "for a class; another program takes what is in its command")
    if document.values.get("entry") == name or "port" in service:
        sentence = "outsiders cannot call it; let a class be the entry, and call this program"
        yield document.problem((*key, "port" if "port" in service else "command"), sentence)


_OF_A_CLASS = ("args", "bind", "batching", "process")


def _check_image(document: Document, name: str, image: Any) -> Iterator[Problem]:
    images = _as(dict, document.values.get("images")) or {}
    if isinstance(image, str) and image not in (*images, DEFAULT_IMAGE):
        known = near(image, images) or f"there are {', '.join(images) or 'none'}"
        yield document.problem(("services", name, "image"), f"no entry of images is named {image!r}; {known}")


def _no_kind(document: Document, services: Mapping[str, Any], name: str) -> str:
    """Where it is a file laid over the graph file that says so, the name is wrong most likely."""
    below = document.sources[0]
    if document.place(("services", name)).source == below:
        return 'missing; add class: "module:Class"'
    known = [each for each in services if document.place(("services", each)).source == below]
    return f"missing, and {no_deployment(name, known).replace('; ', f' in {below}; ', 1)}"


def _check_ports(document: Document, services: Mapping[str, Any], entry: Any) -> Iterator[Problem]:
    taken: dict[int, str] = {}
    for name, service in services.items():
        port = _get(service, "port")
        key: Key = ("services", name, "port")
        if port is None and name == entry:
            port = ENTRY_PORT
        if type(port) is not int:
            continue
        if port in taken:
            yield document.problem(key, f"{port} is the port of {taken[port]!r} already")
        taken.setdefault(port, name)
        replicas = _get(service, "replicas")
        replicas = _get(replicas, "max") if isinstance(replicas, dict) else replicas
        if type(replicas) is int and 1 < replicas <= MAX_REPLICAS:
            yield document.problem(
                ("services", name, "replicas"),
                f"must be 1, not {replicas}: port {port} takes one process; put a deployment of one replica before it",
            )


def _check_bind(document: Document, services: Mapping[str, Any], name: str, bind: Mapping[str, Any]) -> list[Problem]:
    found = []
    for handle, target in bind.items():
        if isinstance(target, str) and target not in services:
            key: Key = ("services", name, "bind", handle)
            found.append(document.problem(key, no_deployment(target, services)))
    return found


def _check_env(document: Document, key: Key, env: Any) -> Iterator[Problem]:
    for variable in _as(dict, env) or {}:
        if variable.startswith("TOOLKIT_"):
            sentence = "the launcher's own, as all TOOLKIT_ variables; use the file's keys"
            yield document.problem((*key, variable), sentence)


T = TypeVar("T")


def _as(kind: type[T], value: Any) -> T | None:
    return value if isinstance(value, kind) else None


def _get(service: Any, key: str) -> Any:
    return service.get(key) if isinstance(service, dict) else None


def _shown(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else text[:47] + "…"
