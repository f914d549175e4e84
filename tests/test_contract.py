"""Does what answers there serve what a handle expects? Asked of servers of this toolkit and of any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase
from services.scoring.v1.scoring_toolkit import ScoringBase
from toolkit.contract import check_contract, differences, fetch_service, served, wait_serving, watch_serving
from toolkit.dispatch import Dispatcher
from toolkit.errors import StartError
from toolkit.limits import MessageLimits
from toolkit.server import Server
from toolkit.service import Service

ECHO = "services.echo.v1.Echo"
LINE = ".services.echo.v1.Line"
PROTO = "services/echo/v1/echo.proto"
File = descriptor_pb2.FileDescriptorProto
Change = Callable[[File], object]


def variant(change: Change) -> descriptor_pool.DescriptorPool:
    """The .proto of services.echo as another project has it."""
    pool = descriptor_pool.DescriptorPool()

    def add(found: Any) -> None:
        for dependency in found.dependencies:
            add(dependency)
        file = File.FromString(found.serialized_pb)
        if found.name == PROTO:
            change(file)
        pool.AddSerializedFile(file.SerializeToString())

    add(descriptor_pool.Default().FindFileByName(PROTO))
    return pool


def echo_of(pool: descriptor_pool.DescriptorPool) -> ServiceDescriptor:
    return pool.FindServiceByName(ECHO)


def message(file: File, name: str) -> Any:
    return next(each for each in file.message_type if each.name == name)


def field(file: File, name: str) -> Any:
    owner, _, own = name.partition(".")
    return next(each for each in message(file, owner).field if each.name == own)


def method(file: File, name: str) -> Any:
    return next(each for each in file.service[0].method if each.name == name)


def without(file: File, name: str) -> None:
    owner, _, own = name.partition(".")
    fields = message(file, owner).field
    del fields[[each.name for each in fields].index(own)]


# What is a difference


def change_field(of: str, /, **changes: Any) -> Change:
    def change(file: File) -> None:
        for attribute, value in changes.items():
            setattr(field(file, of), attribute, value)

    return change


def change_method(of: str, /, **changes: Any) -> Change:
    def change(file: File) -> None:
        for attribute, value in changes.items():
            setattr(method(file, of), attribute, value)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_field("Line.text", type=12), "Line.text (field 1) is string here and bytes there"),
        (change_field("Line.text", label=3), "Line.text (field 1) is string here and repeated string there"),
        (change_field("Image.caption", type=3), "Image.caption (field 2) is string here and int64 there"),
        (change_field("Note.tags", label=1), "Note.tags (field 7) is repeated string here and string there"),
        (change_method("Say", server_streaming=True), "method Say is unary here and server streaming there"),
        (change_method("Join", server_streaming=True), "method Join is client streaming here and bidirectional there"),
        (change_method("Chat", name="Talk"), "method Chat is missing there"),
        (
            lambda file: setattr(message(file, "Note").nested_type[0].field[1], "type", 9),
            "CountsEntry.value (field 2) is int32 here and string there",
        ),
    ],
)
def test_what_would_be_misread_is_told_once(change: Change, expected: str) -> None:
    ours = echo_of(descriptor_pool.Default())
    assert list(differences(ours, echo_of(variant(change)))) == [expected]


@pytest.mark.parametrize(
    "change",
    [
        lambda file: None,
        lambda file: message(file, "Line").field.add(name="newer", number=9, type=9, label=1),
        lambda file: file.service[0].method.add(name="Newer", input_type=LINE, output_type=LINE),
        lambda file: without(file, "Line.number"),
        change_field("Line.text", name="renamed"),
        lambda file: file.enum_type.add(name="Mood").value.add(name="NONE", number=0),
        lambda file: message(file, "Line").reserved_range.add(start=50, end=60),
    ],
)
def test_what_protobuf_is_made_for_is_no_difference(change: Change) -> None:
    ours, theirs = echo_of(descriptor_pool.Default()), echo_of(variant(change))
    assert list(differences(ours, theirs)) == []


def test_a_method_that_only_we_have_is_a_difference_and_one_that_only_they_have_is_none() -> None:
    ours = echo_of(descriptor_pool.Default())
    fewer = echo_of(variant(lambda file: file.service[0].method.pop()))
    assert list(differences(ours, fewer)) == ["method Chat is missing there"]
    assert list(differences(fewer, ours)) == []


# Asked of servers


@asynccontextmanager
async def ours(
    service: Service, *, reflect: bool, is_ready: bool = True
) -> AsyncIterator[tuple[grpc.aio.Channel, Server]]:
    server = Server(service.__contract__, limits=MessageLimits(), reflect=reflect)
    (address,) = await server.listen(("127.0.0.1:0",))
    if is_ready:
        await server.open(Dispatcher(service, timeout=30))
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel, server
    finally:
        await server.drain(0)


@asynccontextmanager
async def foreign(add: Callable[[grpc.aio.Server], object] = lambda server: None) -> AsyncIterator[grpc.aio.Channel]:
    """A server that has nothing to do with this toolkit."""
    server = grpc.aio.server()
    add(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


def reflecting(pool: descriptor_pool.DescriptorPool) -> Callable[[grpc.aio.Server], object]:
    return lambda server: reflection.enable_server_reflection((ECHO, reflection.SERVICE_NAME), server, pool=pool)


class OneFileEach(reflection_pb2_grpc.ServerReflectionServicer):  # type: ignore[misc]  # it has no types
    """Reflection that answers with the file that was asked for and none of those that it imports, as is allowed."""

    def __init__(self, pool: descriptor_pool.DescriptorPool, *, knows_imports: bool = True) -> None:
        self.pool = pool
        self.knows_imports = knows_imports

    async def ServerReflectionInfo(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - gRPC's name
        async for request in requests:
            yield self.answer(request)

    def answer(self, request: Any) -> Any:
        if request.HasField("list_services"):
            named = reflection_pb2.ListServiceResponse(service=[reflection_pb2.ServiceResponse(name=ECHO)])
            return reflection_pb2.ServerReflectionResponse(list_services_response=named)
        if request.HasField("file_containing_symbol"):
            file = self.pool.FindFileContainingSymbol(request.file_containing_symbol)
        elif self.knows_imports:
            file = self.pool.FindFileByName(request.file_by_filename)
        else:
            failure = reflection_pb2.ErrorResponse(error_code=5, error_message="not found")
            return reflection_pb2.ServerReflectionResponse(error_response=failure)
        found = reflection_pb2.FileDescriptorResponse(file_descriptor_proto=[file.serialized_pb])
        return reflection_pb2.ServerReflectionResponse(file_descriptor_response=found)


def sparse(pool: descriptor_pool.DescriptorPool, **options: bool) -> Callable[[grpc.aio.Server], object]:
    return lambda server: reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
        OneFileEach(pool, **options), server
    )


async def check(channel: grpc.aio.Channel) -> None:
    await asyncio.wait_for(check_contract(channel, ECHO, "leaf", "here:1"), 10)


@pytest.mark.parametrize("reflect", [True, False])
async def test_the_same_contract_passes(reflect: bool) -> None:
    async with ours(Echo(), reflect=reflect) as (channel, _):
        await check(channel)
        assert await served(channel) == {ECHO}


@pytest.mark.parametrize("reflect", [True, False])
async def test_another_contract_is_refused_and_both_are_named(reflect: bool) -> None:
    async with ours(ScoringBase(), reflect=reflect) as (channel, _):
        with pytest.raises(StartError) as caught:
            await check(channel)
    assert str(caught.value) == (
        "handle leaf expects services.echo.v1.Echo, and what answers at here:1 serves services.scoring.v1.Scoring; "
        "let `bind` name the right deployment, or change depends()"
    )


async def test_a_contract_is_known_before_its_server_is_ready() -> None:
    async with ours(ScoringBase(), reflect=False, is_ready=False) as (channel, _):
        with pytest.raises(StartError, match="expects services"):
            await check(channel)


async def test_a_contract_of_the_same_name_that_differs_is_refused_with_the_differences() -> None:
    def change(file: File) -> None:
        field(file, "Line.text").type = 12
        method(file, "Chat").name = "Talk"

    async with foreign(reflecting(variant(change))) as channel:
        with pytest.raises(StartError) as caught:
            await check(channel)
    assert str(caught.value) == (
        "handle leaf expects services.echo.v1.Echo as this side's .proto has it, and what answers at here:1 differs: "
        "Line.text (field 1) is string here and bytes there; method Chat is missing there. "
        "Bring both to one .proto and run `toolkit generate`"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda file: without(file, "Line.number"),
        lambda file: message(file, "Line").field.add(name="newer", number=9, type=9, label=1),
    ],
    ids=["older", "newer"],
)
async def test_an_older_and_a_newer_contract_pass(change: Change) -> None:
    async with foreign(reflecting(variant(change))) as channel:
        await check(channel)


async def test_a_server_that_answers_nothing_of_the_kind_passes() -> None:
    async with foreign() as channel:
        await check(channel)
        assert await served(channel) == frozenset()
        assert await fetch_service(channel, ECHO) is None


async def test_a_server_without_reflection_passes_however_often_it_is_asked() -> None:
    async with ours(Echo(), reflect=False) as (channel, _):
        for _ in range(100):
            await check(channel)


def pools() -> Iterator[tuple[descriptor_pool.DescriptorPool, bool]]:
    yield descriptor_pool.Default(), True
    yield variant(change_field("Line.text", type=12)), False


@pytest.mark.parametrize(("pool", "passes"), list(pools()), ids=["same", "other"])
async def test_imports_that_were_left_out_are_asked_for(pool: descriptor_pool.DescriptorPool, passes: bool) -> None:
    async with foreign(sparse(pool)) as channel:
        if passes:
            await check(channel)
        else:
            with pytest.raises(StartError, match=r"Line\.text \(field 1\) is string here and bytes there"):
                await check(channel)


async def test_reflection_that_tells_too_little_is_as_none() -> None:
    async with foreign(sparse(descriptor_pool.Default(), knows_imports=False)) as channel:
        await check(channel)


# Waited for


async def test_a_server_is_waited_for_until_it_serves() -> None:
    service = EchoBase()
    async with ours(service, reflect=False, is_ready=False) as (channel, server):
        waiting = asyncio.create_task(wait_serving(channel, ECHO))
        await served(channel)  # the server has answered something meanwhile
        assert not waiting.done()
        await server.open(Dispatcher(service, timeout=30))
        await asyncio.wait_for(waiting, 10)


async def test_a_server_without_health_is_not_waited_for() -> None:
    async with foreign() as channel:
        await asyncio.wait_for(wait_serving(channel, ECHO), 10)


class Brief(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health that is said once, where a watch has no end."""

    def __init__(self) -> None:
        self.watches = 0

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - gRPC's name
        self.watches += 1
        yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


async def test_a_server_that_ends_each_watch_is_not_asked_all_the_time() -> None:
    health = Brief()
    async with foreign(lambda server: health_pb2_grpc.add_HealthServicer_to_server(health, server)) as channel:
        watch = watch_serving(channel, ECHO)
        loop = asyncio.get_running_loop()
        start = loop.time()
        said = [await anext(watch) for _ in range(8)]
        assert loop.time() - start > 0.25, "three pauses, with which four watches take as long on any machine"
    assert said == [True, False] * 4
    assert health.watches == 4
