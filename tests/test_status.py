"""An error on the wire: whatever a handler raises arrives, within what gRPC's headers can hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Line, Note
from toolkit.context import Context, metadata_pairs
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError
from toolkit.limits import MessageLimits
from toolkit.server import Server
from toolkit.status import DETAILS, MAX_DETAILS, MAX_MESSAGE, PUSHBACK, from_status, sent_message, trailers
from toolkit.transport.grpc import GrpcTransport

INFO = error_details_pb2.ErrorInfo(reason="TOO_LONG", domain="echo")


def error(*details: Any, message: str = "m", path: tuple[str, ...] = ()) -> ServiceError:
    return ServiceError(Code.OUT_OF_RANGE, message, details, path=path)


def received(*metadata: tuple[str, Any], message: str = "m") -> ServiceError:
    status = grpc.StatusCode.OUT_OF_RANGE
    sent = grpc.aio.Metadata(*metadata)
    return from_status(grpc.aio.AioRpcError(status, grpc.aio.Metadata(), sent, message), "here:1")


# In both directions


@pytest.mark.parametrize("code", [each for each in Code if each])
def test_every_code_comes_back(code: Code) -> None:
    status = next(each for each in grpc.StatusCode if each.value[0] == code)
    failure = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), "m")
    assert (from_status(failure, "").code, from_status(failure, "").message) == (code, "m")


@pytest.mark.parametrize(
    "details",
    [
        (),
        (INFO,),
        (INFO, error_details_pb2.RetryInfo(), INFO),
        (timestamp_pb2.Timestamp(seconds=3),),
        (Note(text="a message of generated code", about=Note()), INFO),
    ],
)
def test_details_come_back(details: tuple[Any, ...]) -> None:
    assert received(*trailers(error(*details))).details == details


@pytest.mark.parametrize("pushback", ["soon", "", "9" * 400, "9" * 5000])
def test_a_pause_that_nobody_can_read_means_not_to_come_back(pushback: str) -> None:
    assert received((PUSHBACK, pushback)).retry_after == -1.0


@pytest.mark.parametrize("path", [(), ("a",), ("a", "b-c_1"), ("größe", "a,b", "c d", "100%")])
def test_the_path_comes_back(path: tuple[str, ...]) -> None:
    found = trailers(error(path=path))
    assert received(*found).path == path
    metadata_pairs(dict(found))  # what HTTP/2 can carry


def test_without_path_and_details_nothing_is_sent() -> None:
    assert trailers(error()) == ()


def test_details_are_those_of_every_other_grpc_library() -> None:
    (found,) = trailers(error(INFO, message="long"))
    status = status_pb2.Status.FromString(found[1] if isinstance(found[1], bytes) else b"")
    packed = any_pb2.Any()
    packed.Pack(INFO)
    assert (found[0], status.code, status.message, list(status.details)) == (DETAILS, 11, "long", [packed])


# What others send


def test_a_detail_of_a_type_that_is_not_known_here_comes_as_it_is() -> None:
    packed = any_pb2.Any(type_url="type.googleapis.com/far.away.Thing", value=b"\x08\x01")
    assert received((DETAILS, status_pb2.Status(details=[packed]).SerializeToString())).details == (packed,)


@pytest.mark.parametrize("name", ["services.echo.v1.Note", "google.rpc.ErrorInfo"])
def test_a_detail_that_cannot_be_read_comes_as_it_is(name: str) -> None:
    packed = any_pb2.Any(type_url=f"type.googleapis.com/{name}", value=b"\x0a\x05a")
    assert received((DETAILS, status_pb2.Status(details=[packed]).SerializeToString())).details == (packed,)


@pytest.mark.parametrize("data", [b"\xff\xff", "text", b""])
def test_details_that_are_none_are_no_reason_to_lose_the_error(data: Any) -> None:
    found = received((DETAILS, data), message="the message")
    assert (found.code, found.message, found.details) == (Code.OUT_OF_RANGE, "the message", ())


def test_an_error_without_a_message_is_called_by_its_code() -> None:
    assert received(message="").message == "OUT_OF_RANGE"


def test_a_call_that_a_stopping_server_gave_up_may_be_made_elsewhere() -> None:
    failure = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "CANCELLED")
    found = from_status(failure, "a:1")
    assert (found.code, found.unseen) == (Code.UNAVAILABLE, False)
    assert found.message == "a:1 gave the call up, as servers do that stop"


@pytest.mark.parametrize("said", ["", "the user has left"])
def test_a_cancellation_that_the_other_side_means_stays_one(said: str) -> None:
    failure = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), said)
    assert from_status(failure, "a:1").code is Code.CANCELLED


def test_who_does_not_answer_is_named_by_address() -> None:
    status = grpc.StatusCode.UNAVAILABLE
    failure = grpc.aio.AioRpcError(
        status, grpc.aio.Metadata(), grpc.aio.Metadata(), "failed to connect to all addresses"
    )
    assert from_status(failure, "a:1").message.startswith("nobody answers at a:1 (failed to connect")


# What fits


@pytest.mark.parametrize(
    "text", ["", "short", "x" * 5000, "漢" * 5000, "😀" * 5000, "a" + "é" * 5000, "\ud800", "a\ud800b"]
)
def test_a_message_is_cut_to_what_a_header_takes_and_no_character_is_halved(text: str) -> None:
    sent = sent_message(error(message=text))
    assert len(sent.encode()) <= MAX_MESSAGE
    assert text.startswith(sent) or "\ud800" in text
    assert len(sent.encode()) > MAX_MESSAGE - 4 or sent == text.replace("\ud800", "?")


def test_details_that_do_not_fit_are_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    large = error_details_pb2.DebugInfo(detail="d" * MAX_DETAILS)
    assert received(*trailers(error(INFO, large, INFO))).details == (INFO, INFO)
    assert "google.rpc.DebugInfo, is left out" in caplog.text


def test_a_long_message_leaves_its_details_room() -> None:
    found = trailers(error(INFO, message="m" * 100_000))
    assert sum(len(value) for _, value in found) < 2 * MAX_MESSAGE


def test_a_detail_that_is_no_message_is_refused() -> None:
    with pytest.raises(TypeError, match="the details of a ServiceError are messages, not str"):
        trailers(error("detail"))


# Over a real connection


class Raises(EchoBase):
    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    async def ping(self, request: Line, context: Context) -> Line:
        raise self.failure


class Answers(EchoBase):
    def __init__(self, **metadata: Any) -> None:
        self.metadata = metadata

    async def ping(self, request: Line, context: Context) -> Line:
        context.reply_metadata.update({key.replace("_", "-"): value for key, value in self.metadata.items()})
        return request


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[EchoBase], Any]]:
    """`await connect(service)`: a transport to it over TCP."""
    ends: list[Any] = []

    async def to(service: EchoBase) -> GrpcTransport:
        server = Server(service.__contract__, limits=MessageLimits())
        (address,) = await server.listen(("127.0.0.1:0",))
        await server.open(Dispatcher(service, timeout=30))
        transport = GrpcTransport(address, limits=MessageLimits())
        ends.append((transport, server))
        return transport

    yield to
    for transport, server in ends:
        await transport.close()
        await server.drain(0)


@pytest.mark.parametrize(
    "failure",
    [
        error(message="漢" * 5000),
        error(message="😀" * 5000),
        error(message="a\nb\0c%20"),
        error(INFO, Note(text="x" * 1000), message="😀" * 5000, path=("größe", "b")),
        error(error_details_pb2.DebugInfo(detail="d" * 100_000), INFO, message="m" * 100_000),
    ],
)
async def test_an_error_of_any_size_and_script_arrives(connect: Any, failure: ServiceError) -> None:
    transport = await connect(Raises(failure))
    for _ in range(5):  # beyond a soft limit gRPC refuses some and lets others pass
        with pytest.raises(ServiceError) as caught:
            await EchoClient(transport).ping(Line(), timeout=10)
        found = caught.value
        assert (found.code, found.message, found.path) == (failure.code, sent_message(failure), failure.path)
        assert found.details == tuple(each for each in failure.details if len(str(each)) < 10_000)


async def test_a_message_with_half_a_character_still_ends_its_call(connect: Any) -> None:
    transport = await connect(Raises(error(message="a\ud800b")))
    with pytest.raises(ServiceError, match=r"OUT_OF_RANGE: a\?b"):
        await EchoClient(transport).ping(Line(), timeout=10)


async def test_an_error_with_details_that_are_no_messages_arrives_without_them(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    transport = await connect(Raises(error("detail", message="the message")))
    with pytest.raises(ServiceError, match="OUT_OF_RANGE: the message"):
        await EchoClient(transport).ping(Line(), timeout=10)
    assert "are messages, not str" in caplog.text


async def test_reply_metadata_is_sent_with_its_keys_in_lower_case(connect: Any) -> None:
    transport = await connect(Answers(X_Model="m", raw_bin=b"\xff"))
    ping = transport.channel.unary_unary("/services.echo.v1.Echo/Ping")(b"", timeout=10)
    assert await ping == b""
    assert dict(await ping.trailing_metadata()) == {"x-model": "m", "raw-bin": b"\xff"}


async def test_reply_metadata_that_cannot_be_sent_is_logged_and_the_reply_arrives(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    transport = await connect(Answers(model="größe"))
    assert await EchoClient(transport).ping(Line(text="t"), timeout=10) == Line(text="t")
    assert "metadata model: 'größe' is not plain ASCII; encode it, and send it under model-bin" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"x": "ü"}, "metadata x: 'ü' is not plain ASCII; encode it, and send it under x-bin"),
        ({"x": "a\nb"}, r"metadata x: 'a\\nb' is not plain ASCII"),
        ({"x": b"raw"}, "metadata x: takes text, not bytes; bytes go under a key that ends in -bin"),
        ({"x": 3}, "metadata x: takes text, not int"),
        ({"x-bin": "text"}, "metadata x-bin: a key that ends in -bin takes bytes, not str"),
        ({"x y": "v"}, "metadata key 'x y': use letters, digits"),
        ({"": "v"}, "metadata key '': use letters"),
        ({"größe": "v"}, "metadata key 'größe': use letters"),
        ({":path": "v"}, "metadata key ':path': use letters"),
        ({"grpc-timeout": "v"}, "metadata key 'grpc-timeout': use letters, digits and -_. only, and no grpc- in front"),
    ],
)
def test_metadata_that_cannot_be_sent_is_refused_by_name(metadata: Any, reason: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{reason}"):
        metadata_pairs(metadata)
