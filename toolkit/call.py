"""`toolkit call`: one call to any gRPC server that serves reflection, proto JSON in and out (https://protobuf.dev/programming-guides/json/)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor

from toolkit.contract import fetch_service, served
from toolkit.errors import ToolkitError
from toolkit.limits import MessageLimits
from toolkit.security import PLAIN, wait_connected
from toolkit.spec import Outgoing
from toolkit.status import from_status
from toolkit.transport.grpc import GrpcTransport

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to reach the server before saying that nobody is there."""
MAX_MESSAGE_BYTES: Final = 256 << 20
TENSOR: Final = "toolkit.v1.Tensor"


async def call(
    target: str, method: str, payload: str, *, timeout: float, outgoing: Outgoing = PLAIN
) -> AsyncIterator[str]:
    """Call `method` of the server at `target` and yield each reply as JSON; a tensor shows its dtype and shape.

    `method` is as much of `package.Service/Method` as is unique there. `payload` is one JSON object, or for a method with
    a request stream an array of them. Raises ToolkitError for what the caller wrote, ServiceError for what the call met.
    """
    transport = GrpcTransport((target,), limits=MessageLimits(MAX_MESSAGE_BYTES), outgoing=outgoing)
    try:
        await _reach(transport)
        found = await find_method(transport.channel, method, target)
        requests = [parse(found.input_type, item) for item in _items(found, payload)]
        async for data in _exchange(transport, found, requests, timeout):
            reply = message_factory.GetMessageClass(found.output_type).FromString(data)
            yield json.dumps(shown(reply), ensure_ascii=False, indent=None if found.server_streaming else 2)
    except grpc.aio.AioRpcError as error:
        raise from_status(error, (target,)) from None
    finally:
        await transport.close()


async def find_method(channel: grpc.aio.Channel, wanted: str, target: str) -> MethodDescriptor:
    """The one method that `wanted` names. Raises ToolkitError listing the candidates where it names none or several."""
    names = await served(channel)
    services = [service for name in sorted(names) if (service := await fetch_service(channel, name)) is not None]
    if not services:
        raise ToolkitError(
            f"what answers at {target} serves no reflection; `toolkit up` does, a replica with --reflection"
        )
    every = {f"{s.full_name}/{m.name}": m for s in services for m in s.methods}
    key = wanted.lstrip("/").replace("/", ".")
    matches = [name for name in every if f".{name.replace('/', '.')}".endswith(f".{key}")]
    if len(matches) != 1:
        what = "several methods match" if matches else "no method is called"
        raise ToolkitError(f"{what} {wanted!r}; there are: {', '.join(matches or every)}")
    return every[matches[0]]


def parse(descriptor: Descriptor, item: Any) -> Any:
    """A protobuf message from its JSON. Raises ToolkitError naming the field that does not fit."""
    message = message_factory.GetMessageClass(descriptor)()
    try:
        return json_format.ParseDict(item, message, descriptor_pool=descriptor.file.pool)
    except json_format.ParseError as error:
        raise ToolkitError(f"the JSON is not a {descriptor.name}: {error}") from None


def shown(message: Any) -> dict[str, Any]:
    """A message as JSON for people: field names as in the .proto, unset fields too, tensors by dtype and shape."""
    found: dict[str, Any] = json_format.MessageToDict(
        _without_elements(message),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=message.DESCRIPTOR.file.pool,
    )
    return _with_shapes(message.DESCRIPTOR, found)  # type: ignore[no-any-return]  # an object stays an object


def _items(method: MethodDescriptor, payload: str) -> list[Any]:
    try:
        value = json.loads(payload)
    except ValueError as error:
        raise ToolkitError(f"the payload is not JSON: {error}") from None
    if method.client_streaming:
        return value if isinstance(value, list) else [value]
    if not isinstance(value, dict):
        raise ToolkitError(f"{method.name} takes one JSON object, a {method.input_type.name}")
    return [value]


async def _reach(transport: GrpcTransport) -> None:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await wait_connected(transport.channel, ", ".join(transport.addresses))
    except TimeoutError:
        raise ToolkitError(
            f"nobody answers at {', '.join(transport.addresses)}; is the graph up? Start it with `toolkit up`"
        ) from None


async def _exchange(
    transport: GrpcTransport, method: MethodDescriptor, requests: list[Any], timeout: float
) -> AsyncIterator[bytes]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    shape = f"{_arity(method.client_streaming)}_{_arity(method.server_streaming)}"
    data = [request.SerializeToString() for request in requests]
    ongoing = getattr(transport.channel, shape)(path)(
        iter(data) if method.client_streaming else data[0], timeout=timeout
    )
    if method.server_streaming:
        async for reply in ongoing:
            yield reply
    else:
        yield await ongoing


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


def _without_elements(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    for tensor in _tensors(copy):
        tensor.ClearField("data")
        tensor.ClearField("padding")
    return copy


def _tensors(message: Any) -> Iterator[Any]:
    if message.DESCRIPTOR.full_name == TENSOR:
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            values = value.values() if field.message_type.fields_by_name["value"].message_type else ()
        else:
            values = value if field.is_repeated else (value,)
        for item in values:
            yield from _tensors(item)


def _with_shapes(descriptor: Descriptor, value: Any) -> Any:
    """Rewrite each tensor in a message's JSON as {"dtype": "float32", "shape": [2, 3]}."""
    if descriptor.full_name == TENSOR:
        return {"dtype": value["dtype"].lower(), "shape": [int(axis) for axis in value.get("shape", ())]}
    if descriptor.full_name.startswith("google.protobuf."):
        return value
    for field in descriptor.fields:
        kind = field.message_type
        if kind is None or value.get(field.name) is None:
            continue
        item = value[field.name]
        if kind.GetOptions().map_entry:
            inner = kind.fields_by_name["value"].message_type
            value[field.name] = {k: _with_shapes(inner, v) if inner else v for k, v in item.items()}
        elif field.is_repeated:
            value[field.name] = [_with_shapes(kind, each) for each in item]
        else:
            value[field.name] = _with_shapes(kind, item)
    return value
