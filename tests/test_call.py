"""`toolkit call` over a real server: which method is meant, JSON in, JSON out. Files of arrays are in test_call_files.py."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import Line, Note
from toolkit.call import call
from toolkit.context import Context
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, ToolkitError, UsageError
from toolkit.limits import MessageLimits
from toolkit.server import Server

SERVICE = "services.echo.v1.Echo"
METHODS = ", ".join(f"{SERVICE}/{method.name}" for method in Echo.__contract__.methods)


class Picky(Echo):
    async def ping(self, request: Line, context: Context) -> Line:
        if request.text:
            raise ServiceError(Code.NOT_FOUND, f"no {request.text}")
        return request

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        yield request
        raise ServiceError(Code.DATA_LOSS, "torn")


async def serving(*, reflect: bool) -> AsyncIterator[str]:
    server = Server(Picky.__contract__, limits=MessageLimits(), reflect=reflect)
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(Picky(), timeout=30))
    yield address
    await server.drain(0)


@pytest.fixture
async def target() -> AsyncIterator[str]:
    async for address in serving(reflect=True):
        yield address


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    async for address in serving(reflect=False):
        yield address


async def replies(target: str, method: str, payload: Any) -> list[Any]:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return [json.loads(line) async for line in call(target, method, text, timeout=10)]


# Replies


async def test_a_reply_is_json_with_the_names_of_the_proto_and_every_field(target: str) -> None:
    (reply,) = await replies(target, "Say", {"text": "ä", "times": 2, "number": 1 << 60, "blob": "AP8=", "level": 0})
    assert reply == {
        "text": "ä", "times": 2, "number": str(1 << 60), "weight": 0.0, "urgent": False, "blob": "AP8=",
        "tags": [], "counts": {}, "level": 0,
    }  # fmt: skip


async def test_a_reply_is_laid_out_for_people_and_keeps_its_script(target: str) -> None:
    (text,) = [line async for line in call(target, "Ping", "{}", timeout=10)]
    assert text == '{\n  "text": "",\n  "number": "0"\n}'
    (text,) = [line async for line in call(target, "Join", '[{"text": "größe"}]', timeout=10)]
    assert '"text": "größe"' in text


async def test_a_stream_is_a_line_each(target: str) -> None:
    found = [line async for line in call(target, "Chat", '[{"text": "a"}, {"text": "b"}]', timeout=10)]
    assert [json.loads(line)["text"] for line in found] == ["a", "b"]
    assert not any("\n" in line for line in found)


async def test_a_request_stream_is_an_array_or_one_object(target: str) -> None:
    assert (await replies(target, "Join", [{"text": "a"}, {"text": "b"}]))[0]["number"] == "2"
    assert (await replies(target, "Join", {"text": "a"}))[0]["text"] == "a"
    assert (await replies(target, "Join", []))[0]["number"] == "0"


async def test_a_tensor_shows_as_its_dtype_and_shape(target: str) -> None:
    (reply,) = await replies(target, "Reflect", {"pixels": {"dtype": "FLOAT32", "shape": [2, 3], "data": "A" * 32}})
    assert reply == {"pixels": {"dtype": "float32", "shape": [2, 3]}, "caption": ""}


async def test_what_came_before_an_error_is_shown_before_it(target: str) -> None:
    lines = call(target, "Repeat", '{"text": "before"}', timeout=10)
    assert json.loads(await anext(lines))["text"] == "before"
    with pytest.raises(ServiceError, match="DATA_LOSS: torn"):
        await anext(lines)


async def test_an_error_of_the_call_keeps_its_code(target: str) -> None:
    with pytest.raises(ServiceError, match="^NOT_FOUND: no cat$"):
        await replies(target, "Ping", {"text": "cat"})


# Which method


@pytest.mark.parametrize(
    "method", ["Ping", "Echo/Ping", "Echo.Ping", f"{SERVICE}/Ping", f"/{SERVICE}/Ping", f"{SERVICE}.Ping"]
)
async def test_a_method_is_named_as_far_as_it_is_unique(target: str, method: str) -> None:
    assert await replies(target, method, {}) == [{"text": "", "number": "0"}]


@pytest.mark.parametrize("method", ["Pong", "ping", "ing", "cho/Ping", "", f"{SERVICE}/", "Check"])
async def test_an_unknown_method_is_told_with_those_there_are(target: str, method: str) -> None:
    with pytest.raises(UsageError) as caught:
        await replies(target, method, {})
    assert str(caught.value) == f"no method is called {method!r}; there are: {METHODS}"


@pytest.fixture
async def crowded() -> AsyncIterator[str]:
    """A server of three services with one method name: this toolkit serves one, others serve more."""
    pool = descriptor_pool.DescriptorPool()
    names = ("a.Echo", "b.Echo", "x.a.Echo")
    for name in names:
        package, _, service = name.rpartition(".")
        file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
        file.message_type.add(name="Line").field.add(name="text", number=1, type=9, label=1)
        say = file.service.add(name=service).method.add(name="Say")
        say.input_type = say.output_type = f".{package}.Line"
        pool.AddSerializedFile(file.SerializeToString())
    server = grpc.aio.server()
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server, pool=pool)
    for name in names:
        handler: Any = grpc.unary_unary_rpc_method_handler(_naming(name))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Say": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


def _naming(name: str) -> Any:
    async def say(request: bytes, context: Any) -> bytes:
        return b"\x0a" + bytes([len(name)]) + name.encode()

    return say


async def test_a_name_that_several_methods_have_is_told_with_them(crowded: str) -> None:
    with pytest.raises(UsageError) as caught:
        await replies(crowded, "Say", {})
    assert str(caught.value) == "several methods match 'Say'; there are: a.Echo/Say, b.Echo/Say, x.a.Echo/Say"


@pytest.mark.parametrize("name", ["a.Echo", "b.Echo", "x.a.Echo"])
async def test_a_full_name_is_enough_though_a_longer_one_ends_so(crowded: str, name: str) -> None:
    assert await replies(crowded, f"{name}/Say", {}) == [{"text": name}]


# What is wrong


@pytest.mark.parametrize(
    ("method", "payload", "reason"),
    [
        ("Ping", "{", "the payload is not JSON: Expecting property name"),
        ("Ping", "", "the payload is not JSON: Expecting value"),
        ("Ping", "[" * 100_000, "the payload is not JSON: "),
        ("Ping", "[]", "Ping takes one JSON object, a Line"),
        ("Ping", '"text"', "Ping takes one JSON object, a Line"),
        ("Ping", '{"txet": "a"}', 'the JSON is not a Line: Message type "services.echo.v1.Line" has no field named "txet"'),
        ("Ping", '{"text": 3}', "the JSON is not a Line: Failed to parse text field"),
        ("Ping", '{"number": "x"}', "the JSON is not a Line: Failed to parse number field"),
        ("Ping", '{"number": 1e30}', "the JSON is not a Line: Failed to parse number field"),
        ("Say", '{"blob": 5}', "the JSON is not a Note: Failed to parse blob field"),
        ("Say", '{"tags": "x"}', "the JSON is not a Note: "),
        ("Say", '{"counts": []}', "the JSON is not a Note: "),
        ("Say", '{"about": 5}', "the JSON is not a Note: "),
        ("Join", "3", "Join takes a JSON array of objects, each a Note"),
        ("Join", '[{}, "x"]', "Join takes a JSON array of objects, each a Note"),
        ("Join", "[[]]", "Join takes a JSON array of objects, each a Note"),
    ],
)  # fmt: skip
async def test_a_payload_that_does_not_fit_is_told(target: str, method: str, payload: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        await replies(target, method, payload)
    assert str(caught.value).startswith(reason)


async def test_a_server_without_reflection_is_told_with_the_cure(silent: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        await replies(silent, "Ping", {})
    assert str(caught.value) == (
        f"what answers at {silent} serves no reflection; `toolkit up` does, a replica with --reflection"
    )
