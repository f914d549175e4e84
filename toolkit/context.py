"""`Context`: what a handler knows of the call that it answers, and how later calls inherit from it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

from toolkit.deadline import Deadline
from toolkit.method import Method

Metadata = Mapping[str, str | bytes]
"""Keys in lower case; a value is text, or bytes under a key that ends in `-bin`."""
MetadataPairs = tuple[tuple[str, str | bytes], ...]


@dataclass(slots=True)
class Context:
    """One call, seen from its handler.

    Calls that the handler makes through its handles inherit the deadline by themselves: there is no need to pass this on.
    """

    method: Method[Any, Any]
    deadline: Deadline | None = None
    metadata: MetadataPairs = ()
    """What the caller sent, in order; a key may occur more than once."""
    peer: str = ""
    """The caller's address."""
    reply_metadata: dict[str, str | bytes] = field(default_factory=dict)
    """Sent back when the call ends (gRPC's trailing metadata)."""

    def remaining(self) -> float | None:
        """Seconds until nobody waits for the answer; None when the call has no deadline."""
        return None if self.deadline is None else self.deadline.remaining()

    def first(self, key: str) -> str | bytes | None:
        """The first value that the caller sent under `key`."""
        return next((value for name, value in self.metadata if name == key), None)


ambient: Final[ContextVar[Context | None]] = ContextVar("toolkit-call", default=None)
"""The call being answered in this task; None outside of one."""
