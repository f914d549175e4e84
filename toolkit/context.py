"""`Context`: what a handler knows of the call that it answers, and how later calls inherit from it."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from toolkit.deadline import Deadline
from toolkit.method import Method

Metadata = Mapping[str, str | bytes]
"""Keys in lower case; a value is text, or bytes under a key that ends in `-bin`."""
MetadataPairs = tuple[tuple[str, str | bytes], ...]
REQUEST_ID: Final = "x-request-id"
ALWAYS_FORWARDED: Final = frozenset({REQUEST_ID, "traceparent", "tracestate"})
"""Sent on with every call that a handler makes. The last two are W3C Trace Context (https://www.w3.org/TR/trace-context/)."""
_KEY: Final = re.compile(r"(?!grpc-)[0-9a-z_.-]+")
_TEXT: Final = re.compile(r"[ -~]*")
"""What HTTP/2 headers can hold (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)."""
Detach = Callable[["Context", Coroutine[Any, Any, Any]], asyncio.Task[None]]


class Context:
    """One call, seen from its handler.

    Calls that the handler makes through its handles inherit the deadline by themselves: there is no need to pass this on.
    """

    __slots__ = ("_detach", "_forward", "_forwarded", "_sent", "deadline", "method", "peer", "reply_metadata")

    def __init__(
        self,
        method: Method[Any, Any],
        *,
        deadline: Deadline | None = None,
        sent: Iterable[tuple[str, str | bytes]] = (),
        peer: str = "",
    ) -> None:
        self.method = method
        self.deadline = deadline
        self.reply_metadata: dict[str, str | bytes] = {}
        """Sent back when the call ends (gRPC's trailing metadata)."""
        self.peer = peer
        """The caller's address."""
        self._sent = sent
        self._forward: frozenset[str] = frozenset()
        self._forwarded: MetadataPairs | None = None
        self._detach: Detach | None = None

    def answered_by(self, detach: Detach, forward: frozenset[str]) -> None:
        """What the dispatcher lends to the call: `forward` are the keys that go on beside those that always do."""
        self._detach = detach
        self._forward = forward

    def detached(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        """Run `work` beyond this call: `context.detached(self.audit.record(entry))`.

        It is not cancelled with the call and does not inherit its deadline, but the deployment's own timeout. It keeps the
        request id. What it raises is logged; a replica that stops waits for it as for a call.
        """
        if self._detach is None:
            work.close()
            raise RuntimeError("this context belongs to no call that is being answered")
        return self._detach(self, work)

    def without_deadline(self) -> Context:
        """The same call for work that outlives it."""
        twin = Context(self.method, sent=self._sent, peer=self.peer)
        twin._forward, twin._detach, twin._forwarded = self._forward, self._detach, self.forwarded
        return twin

    @property
    def request_id(self) -> str:
        """Names the call across all services that take part in it; made here where the caller sent none."""
        return next(str(value) for key, value in self.forwarded if key == REQUEST_ID)

    @property
    def forwarded(self) -> MetadataPairs:
        """What goes on with every call that the handler makes."""
        if self._forwarded is None:
            keys = ALWAYS_FORWARDED | self._forward
            found = tuple((key, value) for key, value in self.metadata if key in keys)
            if not any(key == REQUEST_ID for key, _ in found):
                found = ((REQUEST_ID, secrets.token_hex(8)), *found)
            self._forwarded = found
        return self._forwarded

    @property
    def metadata(self) -> MetadataPairs:
        """What the caller sent, in order; a key may occur more than once."""
        return tuple((key, value) for key, value in self._sent)

    def remaining(self) -> float | None:
        """Seconds until nobody waits for the answer; None when the call has no deadline."""
        return None if self.deadline is None else self.deadline.remaining()

    def first(self, key: str) -> str | bytes | None:
        """The first value that the caller sent under `key`."""
        return next((value for name, value in self.metadata if name == key), None)


def metadata_pairs(metadata: Metadata) -> MetadataPairs:
    """Metadata as it goes out, its keys in lower case. Raises ValueError or TypeError naming the key that cannot."""
    return tuple(_checked(key.lower(), value) for key, value in metadata.items())


def _checked(key: str, value: object) -> tuple[str, str | bytes]:
    if not _KEY.fullmatch(key):
        raise ValueError(f"metadata key {key!r}: use letters, digits and -_. only, and no grpc- in front")
    if key.endswith("-bin"):
        if not isinstance(value, bytes):
            raise TypeError(f"metadata {key}: a key that ends in -bin takes bytes, not {type(value).__name__}")
        return key, value
    if not isinstance(value, str):
        raise TypeError(
            f"metadata {key}: takes text, not {type(value).__name__}; bytes go under a key that ends in -bin"
        )
    if not _TEXT.fullmatch(value):
        raise ValueError(f"metadata {key}: {value!r:.80} is not plain ASCII; encode it, and send it under {key}-bin")
    return key, value


ambient: Final[ContextVar[Context | None]] = ContextVar("toolkit-call", default=None)
"""The call being answered in this task; None outside of one."""
