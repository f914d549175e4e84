"""`ReplicaSpec`: all that one replica needs to know. The only thing that the launcher and a replica share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from ipaddress import ip_address
from typing import Any

PREFIX = "TOOLKIT_"
MIB = 1 << 20
DNS = "dns:///"
"""Before a `HOST:PORT` whose host stands for all replicas."""
LOAD_INTERVAL = 1.0
"""Seconds between two words of a replica to its launcher about the calls at hand."""
MAX_SOCKET_PATH = 103
"""Bytes that every platform can bind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incoming:
    """What a replica shows its callers, and what it asks of them. Files only, by their paths; empty: none."""

    cert: str = ""
    """PEM, the chain below it included. With it the replica speaks TLS, else plain HTTP/2."""
    key: str = ""
    caller_ca: str = ""
    """PEM. Callers must show a certificate that this authority signed."""
    callers: tuple[str, ...] | None = None
    """The identities that may call: a URI (`spiffe://graph/deployment`) or a DNS name in the caller's certificate. None:
    whomever `caller_ca` vouches for."""
    token_file: str = ""
    """Bearer tokens, one a line. Callers must send one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """How a deployment is called. Files only, by their paths; empty: none."""

    tls: bool = False
    ca: str = ""
    """PEM. Whom its certificate must be signed by; empty: the public authorities that gRPC brings along."""
    server_name: str = ""
    """The DNS name that its certificate must hold; empty: the host of its address."""
    cert: str = ""
    """PEM, what it is shown when it asks for a certificate."""
    key: str = ""
    token_file: str = ""
    """Bearer tokens, one a line. The first is sent."""
    insecure: bool = False
    """Send the token even where the network can read it."""
    foreign: bool = False
    """Not of this graph, and maybe not one of ours: a connection that is silent is not asked whether it lives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaSpec:
    """Each field is an environment variable of the same name, `TOOLKIT_` before it: text as it is, all else as JSON.

    An address is `HOST:PORT` or `unix:/absolute/path`.
    """

    service: str
    """`module:Class`, imported by the replica from its working directory."""
    command: tuple[str, ...] = ()
    """Instead of a class: a program and its arguments, which serves `grpc.health.v1` where it is told to listen."""
    deployment: str = ""
    """The deployment's name in the graph file; the class's name when it runs alone."""
    replica: int = 0
    listen: tuple[str, ...] = ("127.0.0.1:0",)
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    device: str = "cpu"
    """What placement gave to this replica, as torch names it: `cpu`, `cuda:0`. Handed to a class that takes `device`."""
    cores: tuple[int, ...] = ()
    """The numbers of those that it runs on; empty: all that it may."""
    memory: int | None = None
    """Bytes; who starts it ends it when it takes more. None: no limit."""
    gpu_memory: int | None = None
    """Bytes of its GPU beyond which torch refuses to allocate. None: no limit."""
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Deployment → where its replicas listen; `dns:///HOST:PORT` stands for every address of the host."""
    bind: Mapping[str, str] = field(default_factory=dict)
    """Handle → deployment, where the two names differ."""
    timeout: float = 60.0
    """Seconds that a call may take when its caller sets no deadline."""
    idle_timeout: float | None = None
    """Seconds that a stream may take to make its next item; None: as long as its deadline allows."""
    max_concurrency: int = 64
    """Calls executing at once."""
    max_queue: int | None = None
    """Calls waiting for a turn; None: twice `max_concurrency`, 16 at least."""
    batching: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Batched method → its limits (`max_size`, `max_delay`, `max_cost`, `max_queue`) where they are not its decorator's. Calls
    of such a method do not count for `max_concurrency`."""
    max_outstanding: int = 1024
    """Calls of one handle at once: what one slow dependency may hold of this replica."""
    hedges: Mapping[str, float] = field(default_factory=dict)
    """Deployment → seconds after which a call of an idempotent method is sent to another replica too; 0: worked out from
    the latencies seen. None is hedged that is not listed."""
    ahead: Mapping[str, int] = field(default_factory=dict)
    """Deployment → bytes that the writer of a stream may be ahead of its reader, where that is not 4 KiB."""
    max_message_bytes: int = 64 * MIB
    """Largest message, after decompression, in either direction."""
    message_limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Deployment → method → largest message, where the graph file sets one; `*` stands for every method."""
    forward: tuple[str, ...] = ()
    """Metadata keys that a call's handler sends on, beside the request id and the trace context."""
    start_timeout: float = 600.0
    """Seconds until ready, the wait for dependencies included."""
    drain_timeout: float = 30.0
    """Seconds that calls in flight get after SIGTERM."""
    reflection: bool = False
    """Serve gRPC reflection, so that tools can list and call the methods."""
    incoming: Incoming = Incoming()
    """What callers must bring."""
    outgoing: Mapping[str, Outgoing] = field(default_factory=dict)
    """Deployment → how it is called, where that is not in plain text without a token."""
    insecure: bool = False
    """Listen beyond this machine though callers need neither TLS nor a token."""
    joins: bool = False
    """Others serve already, so nobody knows this one yet: it listens once it is ready."""
    shares_ports: bool = False
    """Its TCP ports are held for it by the launcher, and it may share them with the replica that it replaces."""
    reports_files: bool = False
    """Tell the launcher which files of the project it is made of."""
    reports_metrics: bool = False
    """Tell the launcher every second what was measured."""
    metrics: str = ""
    """`HOST:PORT` at which this process serves `/metrics` for Prometheus, in plain text to everybody; empty: nowhere."""
    companions: tuple[ReplicaSpec, ...] = ()
    """Other deployments in the same process. They and this one call one another directly, not over a wire; each has its own
    addresses for all others."""
    control_fd: int | None = None
    """An inherited socket to the launcher. JSON lines both ways (see toolkit/launcher/events.py); when the launcher closes
    it, the replica stops."""

    def to_environ(self) -> dict[str, str]:
        """The variables that `from_environ` reads back; defaults are left out."""
        found: dict[str, str] = {}
        for option in fields(self):
            value = getattr(self, option.name)
            if value != _default(option):
                found[PREFIX + option.name.upper()] = (
                    value if isinstance(value, str) else json.dumps(value, default=_said)
                )
        return found

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ReplicaSpec:
        """Read the variables of `to_environ`. Raises ValueError naming the variable that is missing or cannot be read."""
        if PREFIX + "SERVICE" not in environ:
            raise ValueError(f"{PREFIX}SERVICE: missing; name the service: package.module:Class")
        found: dict[str, Any] = {}
        for option in fields(cls):
            name = PREFIX + option.name.upper()
            if name in environ:
                found[option.name] = _read(str(option.type), name, environ[name])
        return cls(**found)


def check_target(address: str) -> None:
    """Raises ValueError for what cannot be called: an address, or `dns:///HOST:PORT`."""
    check_address(address.removeprefix(DNS))


def check_address(address: str) -> None:
    """Raises ValueError for what is neither `HOST:PORT` nor `unix:/absolute/path`."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/"):
            raise ValueError(f"{address}: write unix:/absolute/path")
        if len(path.encode()) > MAX_SOCKET_PATH:
            raise ValueError(f"{address}: a socket's path has at most {MAX_SOCKET_PATH} bytes")
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ValueError(f"{address}: write HOST:PORT, or unix:/absolute/path")


def check_port(address: str) -> None:
    """Raises ValueError for what is neither `HOST:PORT` nor empty."""
    if address.startswith("unix:"):
        raise ValueError(f"{address}: write HOST:PORT")
    if address:
        check_address(address)


def is_exposed(address: str) -> bool:
    """Whether others than this machine's processes may reach it: not a Unix socket, and not on the loopback."""
    if address.startswith("unix:"):
        return False
    host = address.removeprefix(DNS).removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _said(value: Incoming | Outgoing | ReplicaSpec) -> dict[str, Any]:
    if isinstance(value, ReplicaSpec):
        return value.to_environ()
    return {option.name: said for option in fields(value) if (said := getattr(value, option.name)) != option.default}


def _default(option: Field[Any]) -> Any:
    return option.default_factory() if option.default_factory is not MISSING else option.default


def _read(kind: str, name: str, text: str) -> Any:
    """The value of a field whose annotation is `kind`."""
    if kind == "str":
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON: {error}") from None
    fits, convert = _KINDS[kind]
    if not fits(value):
        raise ValueError(f"{name}: must be {kind}, not {text[:80]!r}")
    return convert(value)


def _is(*kinds: type) -> Callable[[Any], bool]:
    """Exactly one of these: JSON's true is no number."""
    return lambda value: type(value) in kinds


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_mapping_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(each) if isinstance(each, list) else each for key, each in value.items()}


def _as_is(value: Any) -> Any:
    return value


def _is_record(of: type[Incoming] | type[Outgoing]) -> Callable[[Any], bool]:
    kinds = {option.name: _KINDS[str(option.type)][0] for option in fields(of)}
    return lambda value: (
        isinstance(value, dict) and all(name in kinds and kinds[name](each) for name, each in value.items())
    )


_KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Any], Any]]] = {
    "str": (_is(str), _as_is),
    "int": (_is(int), _as_is),
    "int | None": (_is(int, type(None)), _as_is),
    "float": (_is(int, float), float),
    "float | None": (_is(int, float, type(None)), _as_is),
    "bool": (_is(bool), _as_is),
    "tuple[str, ...]": (_is_list, tuple),
    "tuple[int, ...]": (lambda value: isinstance(value, list) and all(type(each) is int for each in value), tuple),
    "tuple[str, ...] | None": (lambda value: value is None or _is_list(value), _as_is),
    "Mapping[str, Any]": (_is(dict), _as_is),
    "Mapping[str, str]": (_is_mapping_of(_is(str)), _as_is),
    "Mapping[str, int]": (_is_mapping_of(_is(int)), _as_is),
    "Mapping[str, float]": (_is_mapping_of(_is(int, float)), _as_is),
    "Mapping[str, Mapping[str, float]]": (_is_mapping_of(_is_mapping_of(_is(int, float))), _as_is),
    "Mapping[str, Mapping[str, int]]": (_is_mapping_of(_is_mapping_of(_is(int))), _as_is),
    "Mapping[str, tuple[str, ...]]": (
        _is_mapping_of(_is_list),
        lambda value: {key: tuple(each) for key, each in value.items()},
    ),
}
"""Annotation of a field → whether a JSON value fits it, and how it becomes the field's value."""
_KINDS["tuple[ReplicaSpec, ...]"] = (
    lambda value: isinstance(value, list) and all(map(_is_mapping_of(_is(str)), value)),
    lambda value: tuple(map(ReplicaSpec.from_environ, value)),
)
_KINDS["Incoming"] = (_is_record(Incoming), lambda value: Incoming(**_tuples(value)))
_KINDS["Mapping[str, Outgoing]"] = (
    _is_mapping_of(_is_record(Outgoing)),
    lambda value: {key: Outgoing(**each) for key, each in value.items()},
)
