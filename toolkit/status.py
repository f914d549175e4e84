"""`ServiceError` as gRPC carries it: code and message in the status, details as google.rpc.Status, the path beside it.

Source: https://google.aip.dev/193 and the trailer `grpc-status-details-bin` that every gRPC library knows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote, unquote

import grpc
import grpc.aio
from google.protobuf import any_pb2, symbol_database
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import Message as ProtobufMessage
from google.rpc import status_pb2

from toolkit import codec
from toolkit.errors import Code, ServiceError
from toolkit.handshake import explain
from toolkit.message import Message, class_of

log = logging.getLogger("toolkit")
DETAILS: Final = "grpc-status-details-bin"
PATH: Final = "toolkit-path"
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""gRPC's own, from https://github.com/grpc/proposal/blob/master/A6-client-retries.md."""
GIVEN_UP: Final = "CANCELLED"
"""What gRPC's servers say of calls that come in the moment in which they stop: an error that nobody has raised."""
MAX_MESSAGE: Final = 1024
"""Bytes of a message that go out. All headers together may take 8 KiB, and gRPC writes a byte beyond ASCII in three."""
MAX_DETAILS: Final = 3072
"""Bytes of details that go out; in base64, which some write, a third more."""
TYPE_URL: Final = "type.googleapis.com/"
CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


def trailers(error: ServiceError) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata that carries what code and message do not."""
    found: list[tuple[str, str | bytes]] = []
    if error.path:
        found.append((PATH, ",".join(quote(name, safe="") for name in error.path)))
    if error.retry_after is not None:
        found.append((PUSHBACK, str(round(error.retry_after * 1000)) if error.retry_after >= 0 else "-1"))
    if error.details:
        details = _fitting(map(_packed, error.details))
        status = status_pb2.Status(code=error.code, message=sent_message(error), details=details)
        found.append((DETAILS, status.SerializeToString()))
    return tuple(found)


def sent_message(error: ServiceError) -> str:
    """As much of an error's message as a header can take."""
    return error.message.encode("utf-8", "replace")[:MAX_MESSAGE].decode("utf-8", "ignore")


def from_status(error: grpc.aio.AioRpcError, address: str) -> ServiceError:
    """The error that the other side sent, or that gRPC met on the way there."""
    code = Code(error.code().value[0])
    metadata = dict(error.trailing_metadata() or ())
    message = error.details() or code.name
    unseen = code is Code.UNAVAILABLE and not metadata and ("to connect" in message or "backends failing" in message)
    if code is Code.CANCELLED and error.details() == GIVEN_UP and not metadata:
        code, message = Code.UNAVAILABLE, f"{address} gave the call up, as servers do that stop"
    if unseen:
        why = explain(message)
        message = f"nobody answers at {address} ({message})" if why is None else f"cannot talk to {address}: {why}"
    path = metadata.get(PATH, "")
    return ServiceError(
        code,
        message,
        _details(metadata.get(DETAILS)),
        path=map(unquote, str(path).split(",")) if path else (),
        retry_after=_seconds(metadata.get(PUSHBACK)),
        unseen=unseen,
    )


def _seconds(pushback: Any) -> float | None:
    """What cannot be read means, as gRPC has it, that nobody should come back."""
    if pushback is None:
        return None
    try:
        wait = int(pushback) / 1000
    except (ValueError, OverflowError):
        return -1.0
    return wait if wait >= 0 else -1.0


def _packed(detail: Any) -> any_pb2.Any:
    if isinstance(detail, Message):
        return any_pb2.Any(type_url=TYPE_URL + getattr(type(detail), "__proto__"), value=codec.encode(detail))  # noqa: B009 - set by a decorator
    if not isinstance(detail, ProtobufMessage):
        raise TypeError(f"the details of a ServiceError are messages, not {type(detail).__name__}")
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _fitting(details: Iterable[any_pb2.Any]) -> Iterator[any_pb2.Any]:
    left = MAX_DETAILS
    for detail in details:
        size = detail.ByteSize()
        if size <= left:
            left -= size
            yield detail
        else:
            log.warning("a detail of %d bytes, %s, is left out: headers have no room for it", size, detail.type_url)


def _details(data: Any) -> tuple[Any, ...]:
    if not isinstance(data, bytes):
        return ()
    try:
        return tuple(map(_unpacked, status_pb2.Status.FromString(data).details))
    except ProtobufDecodeError:
        return ()


def _unpacked(packed: any_pb2.Any) -> Any:
    """The detail itself where its type is known here, else as it came."""
    name = packed.type_url.rpartition("/")[2]
    cls = class_of(name)
    try:
        if cls is not None:
            return codec.decode(cls, packed.value)
        detail = symbol_database.Default().GetSymbol(name)()
        return detail if packed.Unpack(detail) else packed
    except (KeyError, codec.DecodeError, codec.EncodeError, ProtobufDecodeError):
        return packed
