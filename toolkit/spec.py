"""`ReplicaSpec`: all that one replica needs to know. The only thing that the launcher and a replica share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, cast

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
    start_timeout: float = 600.0
    """Seconds until ready, the wait for dependencies included."""
    drain_timeout: float = 30.0
    """Seconds that calls in flight get after SIGTERM."""
    reflection: bool = False
    """Serve gRPC reflection, so that tools can list and call the methods."""
    control_fd: int | None = None
    """An inherited socket to the launcher: events go out as JSON lines (see `toolkit.launcher.events`); when it closes, the replica stops."""

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
        """Read the variables of `to_environ`. Raises ValueError naming the variable that cannot be read."""
        found: dict[str, Any] = {}
        for option in fields(cls):
            name = PREFIX + option.name.upper()
            if name in environ:
                found[option.name] = _parse(option.name, name, environ[name])
        return cls(**found)


_TEXT = frozenset({"service", "deployment", "device"})


def _default(option: Field[Any]) -> Any:
    return option.default_factory() if option.default_factory is not MISSING else option.default


def _parse(option: str, name: str, text: str) -> Any:
    if option in _TEXT:
        return text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: not JSON: {error}") from None
    if option == "listen":
        return tuple(cast("list[str]", value))
    if option == "addresses":
        return {key: tuple(each) for key, each in cast("dict[str, list[str]]", value).items()}
    return value
