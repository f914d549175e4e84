"""`ServiceError` as gRPC carries it: code and message in the status, details as google.rpc.Status, the path beside it.

Source: https://google.aip.dev/193 and the trailer `grpc-status-details-bin` that every gRPC library knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import any_pb2, symbol_database
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from toolkit.errors import Code, ServiceError

DETAILS: Final = "grpc-status-details-bin"
PATH: Final = "toolkit-path"
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""gRPC's own, from https://github.com/grpc/proposal/blob/master/A6-client-retries.md."""
MAX_MESSAGE: Final = 1024
"""Characters of a message that go out: HTTP/2 headers are small."""
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def trailers(error: ServiceError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata that carries what code and message do not."""
    found: list[tuple[str, str | bytes]] = []
    if error.path:
        found.append((PATH, ",".join(error.path)))
    if error.retry_after is not None:
        found.append((PUSHBACK, str(round(error.retry_after * 1000)) if error.retry_after >= 0 else "-1"))
    if error.details:
        status = status_pb2.Status(code=error.code, message=error.message, details=map(_packed, error.details))
        found.append((DETAILS, status.SerializeToString()))
    return tuple(found)


def from_status(error: grpc.aio.AioRpcError, addresses: Sequence[str]) -> ServiceError:
    """The error that the other side sent, or that gRPC met on the way there."""
    code = Code(error.code().value[0])
    metadata = dict(error.trailing_metadata() or ())
    message = error.details() or code.name
    unseen = code is Code.UNAVAILABLE and not metadata and ("to connect" in message or "backends failing" in message)
    if unseen:
        message = f"nobody answers at {', '.join(addresses)} ({message})"
    path = metadata.get(PATH, "")
    return ServiceError(
        code,
        message,
        _details(metadata.get(DETAILS)),
        path=str(path).split(",") if path else (),
        retry_after=_seconds(metadata.get(PUSHBACK)),
        unseen=unseen,
    )


def _seconds(pushback: Any) -> float | None:
    """What cannot be read means, as gRPC has it, that nobody should come back."""
    if pushback is None:
        return None
    try:
        return max(float(int(pushback)) / 1000, -1.0)
    except ValueError:
        return -1.0


def _packed(detail: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _details(data: Any) -> tuple[Any, ...]:
    if not isinstance(data, bytes):
        return ()
    try:
        return tuple(map(_unpacked, status_pb2.Status.FromString(data).details))
    except DecodeError:
        return ()


def _unpacked(packed: any_pb2.Any) -> Any:
    """The detail itself where its type is known here, else as it came."""
    try:
        detail = symbol_database.Default().GetSymbol(packed.type_url.rpartition("/")[2])()
    except KeyError:
        return packed
    return detail if packed.Unpack(detail) else packed
