"""`ReplicaSpec`: all that one replica needs to know. The only thing that the launcher and a replica share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

PREFIX = "TOOLKIT_"
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaSpec:
    """Each field is an environment variable of the same name, `TOOLKIT_` before it: text as it is, all else as JSON.

    An address is `HOST:PORT` or `unix:/absolute/path`.
    """

    service: str
    """`module:Class`, imported by the replica from its working directory."""
    deployment: str = ""
    """The deployment's name in the graph file; the class's name when it runs alone."""
    replica: int = 0
    listen: tuple[str, ...] = ("127.0.0.1:0",)
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    device: str = "cpu"
    """What placement gave to this replica, as torch names it: `cpu`, `cuda:0`. Handed to a class that takes `device`."""
    addresses: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Deployment → where its replicas listen."""
    bind: Mapping[str, str] = field(default_factory=dict)
    """Handle → deployment, where the two names differ."""
    timeout: float = 60.0
    """Seconds that a call may take when its caller sets no deadline."""
    max_concurrency: int = 64
    """Calls executing at once."""
    max_message_bytes: int = 64 * MIB
    """Largest message, after decompression, in either direction."""
    message_limits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Deployment → method → largest message, where the graph file sets one; `*` stands for every method."""
    start_timeout: float = 600.0
    """Seconds until ready, the wait for dependencies included."""
    drain_timeout: float = 30.0
    """Seconds that calls in flight get after SIGTERM."""
    reflection: bool = False
    """Serve gRPC reflection, so that tools can list and call the methods."""
    control_fd: int | None = None
    """An inherited socket to the launcher. Events go out as JSON lines (see toolkit/launcher/events.py); when the launcher
    closes it, the replica stops."""

    def to_environ(self) -> dict[str, str]:
        """The variables that `from_environ` reads back; defaults are left out."""
        found: dict[str, str] = {}
        for option in fields(self):
            value = getattr(self, option.name)
            if value != _default(option):
                found[PREFIX + option.name.upper()] = value if isinstance(value, str) else json.dumps(value)
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
        raise ValueError(f"{name}: {text[:80]!r} is no {kind}")
    return convert(value)


def _is(*kinds: type) -> Callable[[Any], bool]:
    """Exactly one of these: JSON's true is no number."""
    return lambda value: type(value) in kinds


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_mapping_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _as_is(value: Any) -> Any:
    return value


_KINDS: Mapping[str, tuple[Callable[[Any], bool], Callable[[Any], Any]]] = {
    "int": (_is(int), _as_is),
    "int | None": (_is(int, type(None)), _as_is),
    "float": (_is(int, float), float),
    "bool": (_is(bool), _as_is),
    "tuple[str, ...]": (_is_list, tuple),
    "Mapping[str, Any]": (_is(dict), _as_is),
    "Mapping[str, str]": (_is_mapping_of(_is(str)), _as_is),
    "Mapping[str, Mapping[str, int]]": (_is_mapping_of(_is_mapping_of(_is(int))), _as_is),
    "Mapping[str, tuple[str, ...]]": (
        _is_mapping_of(_is_list),
        lambda value: {key: tuple(each) for key, each in value.items()},
    ),
}
"""Annotation of a field → whether a JSON value fits it, and how it becomes the field's value."""
