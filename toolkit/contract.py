"""Does what answers there serve the contract that a handle expects? Asked once, at start, with standard protocols only:
gRPC reflection where it is served (then the messages are compared), else the names that `grpc.health.v1` lists.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from toolkit.ending import Ending
from toolkit.errors import StartError
from toolkit.handshake import explain
from toolkit.tasks import is_cancelling

HEALTH: Final[Any] = health_pb2
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SILENT: Final = frozenset({grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNKNOWN})
"""How a server answers that it has no such service to ask."""
Files = dict[str, descriptor_pb2.FileDescriptorProto]
DENIED: Final = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
SOONEST: Final = 0.1
"""Seconds from one watch to the next at least: there are servers that end it as soon as it has begun."""
ASK_AGAIN: Final = 1.0
"""Seconds until one that did not let us in is asked again: a token or a certificate may have been renewed."""


async def check_contract(channel: grpc.aio.Channel, contract: str, handle: str, address: str) -> None:
    """Raise StartError where the other side serves something else. Says nothing where it cannot be asked."""
    names = await served(channel)
    if names and contract not in names:
        raise StartError(
            f"handle {handle} expects {contract}, and what answers at {address} serves {', '.join(sorted(names))}; "
            f"let `bind` name the right deployment, or change depends()"
        )
    theirs = await fetch_service(channel, contract)
    if theirs is None:
        return
    ours = descriptor_pool.Default().FindServiceByName(contract)
    problems = list(differences(ours, theirs))
    if problems:
        raise StartError(
            f"handle {handle} expects {contract} as this side's .proto has it, and what answers at {address} differs: "
            f"{'; '.join(problems)}. Bring both to one .proto and run `toolkit generate`"
        )


async def watch_serving(channel: grpc.aio.Channel, contract: str) -> AsyncIterator[bool]:
    """Whether the other side serves the contract, now and again whenever that changes, for ever. A server that has no
    health service counts as serving; so does one that does not let us in, for a call there says why.
    """
    health: Any = health_pb2_grpc.HealthStub(channel)  # the stubs of its types lag behind
    while True:
        asked_at = time.monotonic()
        try:
            async for answer in health.Watch(health_pb2.HealthCheckRequest(service=contract)):
                yield answer.status in (SERVING, SERVICE_UNKNOWN)
        except grpc.aio.AioRpcError as error:
            if error.code() in SILENT:
                yield True
                return
            if error.code() in DENIED or explain(error.details() or ""):
                yield True
                await asyncio.sleep(ASK_AGAIN)
                continue
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            await asyncio.sleep(SOONEST)  # the channel was renewed, and what it was before is closed by now
            continue
        yield False
        await channel.channel_ready()
        await asyncio.sleep(asked_at + SOONEST - time.monotonic())


async def wait_serving(channel: grpc.aio.Channel, contract: str) -> None:
    """Return once the other side serves the contract."""
    async for is_serving in watch_serving(channel, contract):
        if is_serving:
            return


async def served(channel: grpc.aio.Channel) -> frozenset[str]:
    """The full names of the services that the other side says it has; empty where it does not say."""
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    answer = await _reflect(channel, listing)
    if answer is not None:
        return frozenset(s.name for s in answer.list_services_response.service if not s.name.startswith("grpc."))
    try:
        statuses = await _list(channel)
    except grpc.aio.AioRpcError as error:
        if error.code() in SILENT:
            return frozenset()
        raise
    return frozenset(name for name in statuses if name and not name.startswith("grpc."))


async def fetch_service(channel: grpc.aio.Channel, name: str) -> ServiceDescriptor | None:
    """A service's descriptor as the other side has it, in a pool of its own; None where it serves no reflection."""
    files = await _files(channel, reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
    wanted = _imports(files)
    while wanted:  # a server may leave out what a file imports
        path = min(wanted)
        files |= await _files(channel, reflection_pb2.ServerReflectionRequest(file_by_filename=path))
        wanted = _imports(files) if path in files else set()
    pool = descriptor_pool.DescriptorPool()
    try:
        for file in _dependencies_first(files):
            pool.Add(file)
        return pool.FindServiceByName(name)
    except (KeyError, TypeError):
        return None  # it does not tell enough


def differences(ours: ServiceDescriptor, theirs: ServiceDescriptor) -> Iterator[str]:
    """What would make calls from our side to theirs fail or be misread. Methods and fields that only they have, and
    fields that only we have, are no difference: protobuf is made for that.
    """
    seen: set[tuple[str, str]] = set()
    for method in ours.methods:
        other = theirs.methods_by_name.get(method.name)
        if other is None:
            yield f"method {method.name} is missing there"
            continue
        if (method.client_streaming, method.server_streaming) != (other.client_streaming, other.server_streaming):
            yield f"method {method.name} is {_shape(method)} here and {_shape(other)} there"
        yield from _message_differences(method.input_type, other.input_type, seen)
        yield from _message_differences(method.output_type, other.output_type, seen)


def _message_differences(ours: Descriptor, theirs: Descriptor, seen: set[tuple[str, str]]) -> Iterator[str]:
    if (ours.full_name, theirs.full_name) in seen:
        return
    seen.add((ours.full_name, theirs.full_name))
    for field in ours.fields:
        other = theirs.fields_by_number.get(field.number)
        if other is None:
            continue
        if _kind(field) != _kind(other):
            yield f"{ours.name}.{field.name} (field {field.number}) is {_kind(field)} here and {_kind(other)} there"
        elif field.message_type is not None and other.message_type is not None:
            yield from _message_differences(field.message_type, other.message_type, seen)


def _kind(field: FieldDescriptor) -> str:
    name = descriptor_pb2.FieldDescriptorProto.Type.Name(cast("Any", field.type)).removeprefix("TYPE_").lower()
    return f"repeated {name}" if field.is_repeated else name


def _shape(method: Any) -> str:
    shapes = {(0, 0): "unary", (0, 1): "server streaming", (1, 0): "client streaming", (1, 1): "bidirectional"}
    return shapes[int(method.client_streaming), int(method.server_streaming)]


async def _list(channel: grpc.aio.Channel) -> Iterable[str]:
    """The names that `grpc.health.v1` knows there."""
    health: Any = health_pb2_grpc.HealthStub(channel)  # the stubs of its types lag behind
    return tuple((await health.List(HEALTH.HealthListRequest())).statuses)


async def _reflect(channel: grpc.aio.Channel, request: Any) -> Any:
    connected: Any = channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(connected)

    async def once() -> AsyncIterator[Any]:
        yield request

    call = stub.ServerReflectionInfo(once())
    ending = Ending(call)
    try:
        async for answer in call:
            return answer
    except grpc.aio.AioRpcError as error:
        failure = await ending.of(error)
        if failure is not None and failure.code() not in SILENT:
            raise failure from None
    return None


async def _files(channel: grpc.aio.Channel, request: Any) -> Files:
    """The files in an answer; none where there is no such answer."""
    answer = await _reflect(channel, request)
    if answer is None or not answer.HasField("file_descriptor_response"):
        return {}
    parsed = map(descriptor_pb2.FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    return {proto.name: proto for proto in parsed}


def _imports(files: Files) -> set[str]:
    """What these files import and is not among them."""
    return {name for proto in files.values() for name in proto.dependency} - set(files)


def _dependencies_first(files: Files) -> list[descriptor_pb2.FileDescriptorProto]:
    left = dict(files)
    ordered: list[descriptor_pb2.FileDescriptorProto] = []

    def add(name: str) -> None:
        proto = left.pop(name, None)
        if proto is not None:
            for dependency in proto.dependency:
                add(dependency)
            ordered.append(proto)

    for name in files:
        add(name)
    return ordered
