"""What both peers know of a contract: its methods, their messages and their shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


@dataclass(frozen=True, kw_only=True, slots=True)
class Method(Generic[Request, Reply]):
    """One `rpc` of a .proto."""

    service: str
    """Full name, `services.scoring.v1.Scoring`."""
    name: str
    """As in the .proto, `Score`."""
    attribute: str
    """The Python name of the handler and of the client's method, `score`."""
    request: type[Request]
    reply: type[Reply]
    client_streaming: bool = False
    server_streaming: bool = False
    idempotent: bool = False
    """The .proto says `idempotency_level = NO_SIDE_EFFECTS` or `IDEMPOTENT`: it may be sent twice."""
    max_message_bytes: int = 0
    """The .proto's own limit for a request or reply; 0 where it sets none."""

    path: str = field(init=False)
    """As on the wire, `/services.scoring.v1.Scoring/Score`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", f"/{self.service}/{self.name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Contract:
    """One `service` of a .proto."""

    name: str
    """Full name, `services.scoring.v1.Scoring`."""
    methods: tuple[Method[Any, Any], ...]
