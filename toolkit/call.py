"""`toolkit call`: one call to any gRPC server that serves reflection, proto JSON in and out (https://protobuf.dev/programming-guides/json/)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from toolkit.array_files import ArrayFolder
from toolkit.codec import MAX_TENSORS
from toolkit.contract import fetch_service, served
from toolkit.errors import StartError, ToolkitError, UsageError
from toolkit.limits import MessageLimits
from toolkit.security import PLAIN, wait_connected
from toolkit.spec import Outgoing
from toolkit.status import from_status
from toolkit.tensor_json import TENSOR, Path, find_tensors, parse, shown, tensor_of
from toolkit.transport.grpc import GrpcTransport

CONNECT_TIMEOUT: Final = 5.0
"""Seconds to reach the server before saying that nobody is there."""
MAX_MESSAGE_BYTES: Final = 256 << 20


async def call(
    target: str,
    method: str,
    payload: str,
    *,
    timeout: float,
    outgoing: Outgoing = PLAIN,
    save: ArrayFolder | None = None,
) -> AsyncIterator[str]:
    """Call `method` of the server at `target` and yield each reply as JSON; a tensor shows its dtype and shape.

    `method` is as much of `package.Service/Method` as is unique there. `payload` is one JSON object, or for a method with
    a request stream an array of them; `parse` says how it may hold tensors. The arrays of the replies are saved to `save`.
    Raises UsageError for what the caller wrote, ToolkitError where nobody is there, and ServiceError for what the call met.
    """
    if save is not None:
        save.make()
    try:
        transport = GrpcTransport(target, limits=MessageLimits(MAX_MESSAGE_BYTES), outgoing=outgoing)
    except StartError as error:  # the files that `outgoing` names
        raise UsageError(str(error)) from None
    try:
        await _reach(transport)
        found = await find_method(transport.channel, method, target)
        requests = [parse(found.input_type, item) for item in _items(found, payload)]
        place = 0
        async for data in _exchange(transport, found, requests, timeout):
            reply = message_factory.GetMessageClass(found.output_type).FromString(data)
            prefix = (f"{place:04d}",) if found.server_streaming else ()
            files = save_arrays(reply, save, prefix) if save is not None else {}
            yield json.dumps(shown(reply, files), ensure_ascii=False, indent=None if found.server_streaming else 2)
            place += 1
    except grpc.aio.AioRpcError as error:
        raise from_status(error, target) from None
    finally:
        await transport.close()


async def find_method(channel: grpc.aio.Channel, wanted: str, target: str) -> MethodDescriptor:
    """The one method that `wanted` names. Raises UsageError listing the candidates where it names none or several."""
    names = await served(channel)
    services = [service for name in sorted(names) if (service := await fetch_service(channel, name)) is not None]
    if not services:
        raise ToolkitError(
            f"what answers at {target} serves no reflection; `toolkit up` does, a replica with --reflection"
        )
    every = {f"{s.full_name}/{m.name}": m for s in services for m in s.methods}
    dotted = {name.replace("/", "."): name for name in every}
    key = wanted.lstrip("/").replace("/", ".")
    matches = [dotted[key]] if key in dotted else [dotted[name] for name in dotted if name.endswith(f".{key}")]
    if not matches:
        raise UsageError(f"no method is called {wanted!r}; there are: {', '.join(every)}")
    if len(matches) > 1:
        raise UsageError(f"several methods match {wanted!r}; there are: {', '.join(matches)}")
    return every[matches[0]]


def save_arrays(reply: Any, folder: ArrayFolder, prefix: Path = ()) -> dict[Path, str]:
    """Save every tensor of a reply by its path, and return path → file. Raises ToolkitError, where it is no tensor too."""
    files: dict[Path, str] = {}
    for path, pb in find_tensors(reply):
        if len(files) == MAX_TENSORS:
            raise ToolkitError(f"the reply holds more than {MAX_TENSORS} tensors")
        try:
            tensor = tensor_of(pb)
        except ValueError as error:
            raise ToolkitError(f"the reply's {'.'.join(path) or 'tensor'} is wrong: {error}") from None
        files[path] = folder.save((*prefix, *(path or ("tensor",))), tensor)
    return files


def _items(method: MethodDescriptor, payload: str) -> list[Any]:
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the payload is not JSON: {error}") from None
    items = value if method.client_streaming and isinstance(value, list) else [value]
    if method.input_type.full_name != TENSOR and not all(isinstance(item, dict) for item in items):
        kind = method.input_type.name
        if method.client_streaming:
            raise UsageError(f"{method.name} takes a JSON array of objects, each a {kind}")
        raise UsageError(f"{method.name} takes one JSON object, a {kind}")
    return items


async def _reach(transport: GrpcTransport) -> None:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await wait_connected(transport.channel, transport.address)
    except TimeoutError:
        raise ToolkitError(
            f"nobody answers at {transport.address}; is the graph up? Start it with `toolkit up`"
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
