"""`Context`: what a handler knows of the call that it answers, and how later calls inherit from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol

from toolkit.deadline import Deadline
from toolkit.method import Method

Metadata = Mapping[str, str | bytes]
"""Keys in lower case; a value is text, or bytes under a key that ends in `-bin`."""
MetadataPairs = tuple[tuple[str, str | bytes], ...]


class Origin(Protocol):
    """Where a call came from, asked only when a handler wants to know. Named as grpc.aio names it."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...
    def peer(self) -> str: ...


class Context:
    """One call, seen from its handler.

    Calls that the handler makes through its handles inherit the deadline by themselves: there is no need to pass this on.
    """

    __slots__ = ("_origin", "deadline", "method", "reply_metadata")

    def __init__(
        self, method: Method[Any, Any], *, deadline: Deadline | None = None, origin: Origin | None = None
    ) -> None:
        self.method = method
        self.deadline = deadline
        self.reply_metadata: dict[str, str | bytes] = {}
        """Sent back when the call ends (gRPC's trailing metadata)."""
        self._origin = origin

    @property
    def metadata(self) -> MetadataPairs:
        """What the caller sent, in order; a key may occur more than once."""
        sent = None if self._origin is None else self._origin.invocation_metadata()
        return tuple((key, value) for key, value in sent or ())

    @property
    def peer(self) -> str:
        """The caller's address."""
        return "" if self._origin is None else self._origin.peer()

    def remaining(self) -> float | None:
        """Seconds until nobody waits for the answer; None when the call has no deadline."""
        return None if self.deadline is None else self.deadline.remaining()

    def first(self, key: str) -> str | bytes | None:
        """The first value that the caller sent under `key`."""
        return next((value for name, value in self.metadata if name == key), None)


ambient: Final[ContextVar[Context | None]] = ContextVar("toolkit-call", default=None)
"""The call being answered in this task; None outside of one."""
