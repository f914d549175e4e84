"""How large a message may be: per method, from the graph file, the .proto, or the default. Never unlimited."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from toolkit.method import Contract, Method

DEFAULT: Final = 64 << 20
"""Bytes of one message, after decompression, in either direction."""
EVERY_METHOD: Final = "*"


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """The limits of one deployment, in bytes. The first that is set counts: the graph file's for the method, the .proto's
    option `(toolkit.v1.method).max_message_bytes`, the graph file's for every method, `default`.
    """

    default: int = DEFAULT
    said: Mapping[str, int] = field(default_factory=dict)
    """The graph file's: method → bytes, `*` for every method."""

    def of(self, method: Method[Any, Any]) -> int:
        everything = self.said.get(EVERY_METHOD, self.default)
        return self.said.get(method.name) or method.max_message_bytes or everything

    def largest(self, contract: Contract) -> int:
        """What the connection must let through, before the method is known."""
        return max(map(self.of, contract.methods), default=self.default)
