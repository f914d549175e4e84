"""What can go wrong, split by whose fault it is: `ServiceError` travels on the wire, `ToolkitError` stops a start."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

log = logging.getLogger("toolkit")


class Code(IntEnum):
    """The status codes of gRPC, with gRPC's numbers (https://grpc.io/docs/guides/status-codes/)."""

    OK = 0
    CANCELLED = 1
    """The caller gave up."""
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    """The request is wrong whatever the state of the service; do not retry it unchanged."""
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    """A limit was hit: message size, concurrency, queue, quota."""
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    """A bug or an unknown exception in the service; the message carries an id to look up in its log."""
    UNAVAILABLE = 14
    """Nobody answers there now; a later try may succeed."""
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServiceError(Exception):
    """The error of a call: raised by a handler, and raised again, equal, by the handle that called it.

    `message` is one sentence for the caller. `details` are protobuf messages (those of google/rpc/error_details.proto
    by custom); they cross every hop. `path` names the deployments that the error came through, caller first.
    `retry_after`, in seconds, is when the other side wants to be asked again; negative: not at all. `unseen` says that no
    handler saw the request, so that any method may be sent again.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        details: Iterable[Any] = (),
        *,
        path: Iterable[str] = (),
        retry_after: float | None = None,
        unseen: bool = False,
    ) -> None:
        if code == Code.OK:
            raise ValueError("OK is not an error: return a reply instead")
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.details = tuple(details)
        self.path = tuple(path)
        self.retry_after = retry_after
        self.unseen = unseen

    def __str__(self) -> str:
        hops = " → ".join(self.path)
        return f"{self.code.name}: {self.message}" + (f" (via {hops})" if hops else "")


def internal(error: BaseException) -> ServiceError:
    """What a caller learns of an unknown exception: an id. The log has the rest."""
    ident = secrets.token_hex(4)
    log.error("internal error %s", ident, exc_info=error)
    return ServiceError(Code.INTERNAL, f"internal error {ident}; the service's log has the traceback")


class ToolkitError(Exception):
    """Something is wrong before the first call. The message says what, where, and the next step; no traceback is needed."""


class UsageError(ToolkitError):
    """What was typed is wrong, or a file that it names."""


class GraphError(ToolkitError):
    """The graph file is wrong. `str()` is one line a problem: `file:line: key: message`."""


class PlacementError(ToolkitError):
    """The machine lacks what the graph asks for."""


class ConflictError(ToolkitError):
    """A port or a folder that a graph needs is somebody else's. `str()` is one line a problem."""


class RunningError(ToolkitError):
    """The graph is up already."""


class NotRunningError(ToolkitError):
    """The graph is not up."""


class GenerateError(ToolkitError):
    """A .proto cannot be generated from. `str()` is one line a problem: `path:line:col: message`."""


class StartError(ToolkitError):
    """A replica cannot start: its class, its model, its handles or its address."""
