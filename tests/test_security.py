"""A guarded server and the channels that reach it: who is let in, who is not, and what changes without a restart."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from tests.certificates import guarded, make
from toolkit import security
from toolkit.connect import Tls, connect, pool
from toolkit.contract import served
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, StartError
from toolkit.limits import MessageLimits
from toolkit.replica import _follow
from toolkit.security import PLAIN, check_exposure, open_channel, refusals, wait_connected
from toolkit.server import Server
from toolkit.spec import Incoming, Outgoing, ReplicaSpec
from toolkit.transport.grpc import GrpcTransport

LIMITS = MessageLimits(1 << 20)
SAY = "/services.echo.v1.Echo/Say"


class Echo(EchoBase):
    async def say(self, request: Note, context: Any) -> Note:
        return request


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def certs(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "certs"))


@asynccontextmanager
async def serving(incoming: Incoming, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    server = Server(Echo.__contract__, limits=LIMITS, reflect=True, incoming=incoming)
    (bound,) = await server.listen((address,))
    await server.open(Dispatcher(Echo(), timeout=5))
    try:
        yield bound
    finally:
        await server.drain(0)


async def say(address: str, outgoing: Outgoing = PLAIN) -> str:
    """What the server answers: `ok`, or the error."""
    transport = GrpcTransport(address, limits=LIMITS, outgoing=outgoing)
    try:
        await EchoClient(transport).say(Note(text="hi"), timeout=5)
        return "ok"
    except ServiceError as error:
        return str(error)
    finally:
        await transport.close()


async def test_the_right_certificate_and_token_are_let_in(certs: Path) -> None:
    incoming, outgoing = guarded(certs)
    async with serving(incoming) as address:
        assert await say(address, outgoing) == "ok"
        assert await say(address, guarded(certs, "entry")[1]) == "ok"  # by its DNS name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_file": ""}, "UNAUTHENTICATED: a token is needed"),
        ({"token_file": "other"}, "UNAUTHENTICATED: this token is not accepted"),
        ({"caller": "stranger"}, "PERMISSION_DENIED: spiffe://test/stranger is not one of the callers"),
        ({"cert": "", "key": ""}, "it ended the connection at once"),
        ({"cert": "foreign/client.crt", "key": "foreign/client.key"}, "it ended the connection at once"),
        ({"ca": "foreign/ca.crt"}, "its certificate is not signed by the authority that is trusted here"),
        ({"server_name": "entry.test"}, "its certificate is for another name"),
        ({"tls": False}, "it ended the connection at once. It may speak TLS"),
    ],
)
async def test_everybody_else_is_told_why_not(certs: Path, change: dict[str, Any], said: str) -> None:
    (certs / "other").touch(mode=0o600)
    (certs / "other").write_text("another-token-0123456789")
    caller = change.pop("caller", "client")
    change = {
        key: str(certs / value) if isinstance(value, str) and value and key != "server_name" else value
        for key, value in change.items()
    }
    incoming, outgoing = guarded(certs, caller)
    async with serving(incoming) as address:
        assert said in await say(address, replace(outgoing, **change))


async def test_an_expired_server_is_told(certs: Path) -> None:
    server = grpc.aio.server()
    pair = ((certs / "old.key").read_bytes(), (certs / "old.crt").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    assert "its certificate has expired" in await say(f"127.0.0.1:{port}", Outgoing(tls=True, ca=str(certs / "ca.crt")))
    await server.stop(None)


async def test_tls_to_a_server_that_speaks_none_is_told(certs: Path) -> None:
    async with serving(Incoming()) as address:
        assert "it speaks no TLS" in await say(address, Outgoing(tls=True, ca=str(certs / "ca.crt")))


async def test_a_socket_is_guarded_like_a_port(certs: Path) -> None:
    incoming, outgoing = guarded(certs)
    async with serving(incoming, f"unix:{certs}/socket") as address:
        assert await say(address, outgoing) == "ok"
        assert "UNAUTHENTICATED" in await say(address, replace(outgoing, token_file=""))


async def test_every_address_of_a_server_takes_renewed_certificates(certs: Path) -> None:
    incoming, outgoing = guarded(certs)
    server = Server(Echo.__contract__, limits=LIMITS, incoming=incoming)
    addresses = await server.listen(("127.0.0.1:0", f"unix:{certs}/socket"))
    await server.open(Dispatcher(Echo(), timeout=5))
    for suffix in ("crt", "key"):
        shutil.copy(certs / f"foreign/leaf.{suffix}", certs / f"leaf.{suffix}")
    outgoing = replace(outgoing, ca=str(certs / "foreign/ca.crt"))
    assert [await say(address, outgoing) for address in addresses] == ["ok", "ok"]
    await server.drain(0)


async def test_a_renewal_that_does_not_fit_together_keeps_the_old_certificate(certs: Path) -> None:
    incoming, outgoing = guarded(certs)
    async with serving(incoming) as address:
        shutil.copy(certs / "foreign/leaf.crt", certs / "leaf.crt")  # its key is still to come
        assert await say(address, outgoing) == "ok"


async def test_an_open_channel_shows_its_renewed_certificate(certs: Path) -> None:
    incoming, outgoing = guarded(certs, "stranger")
    async with serving(incoming) as address:
        transport = GrpcTransport(address, limits=LIMITS, outgoing=outgoing)
        client = EchoClient(transport)
        with pytest.raises(ServiceError, match="PERMISSION_DENIED"):
            await client.say(Note(), timeout=5)
        for suffix in ("key", "crt"):
            shutil.copy(certs / f"client.{suffix}", certs / f"stranger.{suffix}")
        await client.say(Note(), timeout=5)
        await transport.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.01)


async def test_a_pool_goes_on_watching_when_its_channel_was_renewed(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security, "LEAVE_AFTER", 0.1)
    incoming, outgoing = guarded(certs)
    server = Server(Echo.__contract__, limits=LIMITS, incoming=incoming)
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(Echo(), timeout=5))
    found = pool((address,), Echo.__contract__, name="echo", limits=LIMITS, outgoing=outgoing)
    try:
        await EchoClient(found).say(Note(), timeout=5)
        for suffix in ("key", "crt"):
            shutil.copy(certs / f"entry.{suffix}", certs / f"client.{suffix}")
        await EchoClient(found).say(Note(), timeout=5)
        async with asyncio.timeout(20):
            await until(lambda: not found.transports[address].channel._leaving)  # type: ignore[attr-defined]  # it has
            await EchoClient(found).say(Note())
            await server.drain(0)
            await until(lambda: not found.replicas[0].is_ready)
    finally:
        await found.close()


async def test_calls_that_are_open_when_a_channel_that_was_renewed_is_left_end_with_an_error_of_theirs(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were given an hour, and nobody has cancelled them."""
    monkeypatch.setattr(security, "LEAVE_AFTER", 0.1)
    stuck = asyncio.Event()

    class Endless(Echo):
        async def repeat(self, request: Note, context: Any) -> AsyncIterator[Note]:
            yield request
            await stuck.wait()

        async def join(self, requests: AsyncIterator[Note], context: Any) -> Note:
            await stuck.wait()
            return Note()

        async def chat(self, requests: AsyncIterator[Note], context: Any) -> AsyncIterator[Note]:
            yield Note()
            await stuck.wait()

        async def say(self, request: Note, context: Any) -> Note:
            if request.text:
                await stuck.wait()
            return request

    async def notes() -> AsyncIterator[Note]:
        yield Note()
        await stuck.wait()

    async def read(replies: AsyncIterator[Note]) -> None:
        async for _ in replies:
            heard.release()

    incoming, outgoing = guarded(certs)
    heard = asyncio.Semaphore(0)
    server = Server(Echo.__contract__, limits=LIMITS, incoming=incoming)
    (address,) = await server.listen(("127.0.0.1:0",))
    await server.open(Dispatcher(Endless(), timeout=60))
    transport = GrpcTransport(address, limits=LIMITS, outgoing=outgoing)
    client = EchoClient(transport)
    try:
        calls = [
            asyncio.ensure_future(call)
            for call in (
                read(client.repeat(Note(), timeout=60)),
                read(client.chat(notes(), timeout=60)),
                client.join(notes(), timeout=60),
                client.say(Note(text="wait"), timeout=60),
            )
        ]
        for _ in range(2):
            await heard.acquire()
        for suffix in ("key", "crt"):
            shutil.copy(certs / f"entry.{suffix}", certs / f"client.{suffix}")
        await client.say(Note(), timeout=5)
        async with aclosing(client.repeat(Note(), timeout=5)) as replies:
            await anext(replies)
        async with asyncio.timeout(20):
            ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in ended] == [ServiceError] * 4
        assert {each.code for each in ended if isinstance(each, ServiceError)} == {Code.UNAVAILABLE}
    finally:
        await transport.close()
        await server.drain(0)


async def test_a_token_is_rotated_without_a_restart(certs: Path) -> None:
    """The server's file takes the new one beside the old, the client's file follows, and then the old one is dropped."""
    theirs, ours = certs / "theirs", certs / "ours"
    for file in (theirs, ours):
        file.touch(mode=0o600)
        file.write_text("old-token-0123456789\n")
    async with (
        serving(Incoming(token_file=str(theirs))) as address,
        connect(EchoClient, address, token_file=ours) as client,
    ):
        await client.say(Note(), timeout=5)
        theirs.write_text("new-token-0123456789\nold-token-0123456789\n")
        await client.say(Note(), timeout=5)
        ours.write_text("new-token-0123456789\n")
        await client.say(Note(), timeout=5)
        theirs.write_text("new-token-0123456789\n")
        await client.say(Note(), timeout=5)
        ours.write_text("old-token-0123456789\n")
        with pytest.raises(ServiceError) as caught:
            await client.say(Note(), timeout=5)
        assert caught.value.code is Code.UNAUTHENTICATED


async def test_a_replica_whose_channel_cannot_be_opened_while_a_token_is_rotated_is_tried_again(
    certs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the launcher's news counts meanwhile: that of the other handles, and the lines that follow."""
    token = certs / "ours"
    token.touch(mode=0o600)
    token.write_text("token-of-test-0123456789\n")
    guard = Incoming(token_file=str(certs / "ours"))
    outgoing = {"echo": Outgoing(token_file=str(token)), "other": PLAIN}
    async with serving(guard) as first, serving(guard) as second, serving(Incoming()) as plain:
        handles = {
            name: pool((first,), Echo.__contract__, name=name, limits=LIMITS, outgoing=outgoing[name])
            for name in outgoing
        }
        echo = EchoClient(handles["echo"])
        try:
            await echo.say(Note(), timeout=5)
            token.write_text("short\n")
            _follow(ReplicaSpec(service=""), handles, {"echo": (first, second), "other": (plain,)})
            assert list(handles["other"].transports) == [plain]
            await echo.say(Note(), timeout=5)
            assert list(handles["echo"].transports) == [first]
            (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
            assert said.startswith(f"echo: {second} cannot be called yet: {token}: line 1 is no token")
            token.write_text("token-of-test-0123456789\n")
            async with asyncio.timeout(20):
                await until(lambda: [each.is_ready for each in handles["echo"].replicas] == [True, True])
        finally:
            for each in handles.values():
                await each.close()


async def test_a_caller_may_say_the_token_itself(certs: Path) -> None:
    token = (certs / "token").read_text().strip()
    async with serving(Incoming(token_file=str(certs / "token"))) as address, connect(EchoClient, address) as client:
        await client.say(Note(), timeout=5, metadata={"authorization": f"Bearer {token}"})


async def test_a_pool_tells_why_it_is_not_let_in(certs: Path) -> None:
    incoming, _ = guarded(certs)
    async with (
        serving(incoming) as address,
        connect(EchoClient, address, tls=Tls(ca=certs / "foreign/ca.crt")) as client,
    ):
        with pytest.raises(ServiceError, match="not signed by the authority"):
            await client.say(Note(), timeout=5)


async def test_health_is_open_to_everybody_and_everything_else_is_not(certs: Path) -> None:
    async with serving(Incoming(token_file=str(certs / "token"))) as address:
        channel = open_channel(address, ())
        health: Any = health_pb2_grpc.HealthStub(channel)
        checked = await health.Check(health_pb2.HealthCheckRequest(service="whatever"))
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served(channel)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for method in (SAY, "/no.such.Service/Method", "/grpc.health.v1.Health/List"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(method)(b"")
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await channel.close()


async def test_reflection_is_open_to_callers(certs: Path) -> None:
    incoming, outgoing = guarded(certs)
    async with serving(incoming) as address:
        channel = open_channel(address, (), outgoing)
        assert await served(channel) == {"services.echo.v1.Echo"}
        await channel.close()


async def test_a_method_of_one_request_that_gets_none_is_answered(certs: Path) -> None:
    incoming, outgoing = guarded(certs)
    async with serving(incoming) as address:
        channel = open_channel(address, (), outgoing)

        async def nothing() -> AsyncIterator[bytes]:
            return
            yield b""

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary(SAY)(nothing())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await channel.close()


async def test_a_start_waits_for_a_server_and_not_for_a_wrong_one(certs: Path) -> None:
    incoming, outgoing = guarded(certs)
    async with serving(incoming) as address:
        for wrong, said in (
            (PLAIN, "handle leaf cannot be talked to: it ended the connection at once"),
            (
                replace(outgoing, ca=str(certs / "foreign/ca.crt")),
                "handle leaf cannot be talked to: its certificate is not",
            ),
        ):
            channel = open_channel(address, (), wrong)
            with pytest.raises(StartError, match=said):
                await wait_connected(channel, "handle leaf")
            await channel.close()
        channel = open_channel(address, (), guarded(certs, "stranger")[1])
        await wait_connected(channel, "handle leaf")
        with (
            pytest.raises(StartError, match="handle leaf does not let us in: spiffe://test/stranger"),
            refusals("handle leaf"),
        ):
            await served(channel)
        await channel.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": "entry.key"}, "entry.key: not the key of"),
        ({"cert": "gone"}, "gone: no such file"),
        ({"cert": "old.crt", "key": "old.key"}, "old.crt: expired; renew it"),
        ({"caller_ca": "token"}, "token: holds no certificate in PEM form"),
        ({"token_file": "ca.crt"}, "ca.crt: other users can read this secret; run: chmod 600"),
        ({"key": "open.key"}, "open.key: other users can read this secret; run: chmod 600"),
    ],
)
async def test_a_server_with_wrong_files_does_not_start(certs: Path, change: dict[str, str], said: str) -> None:
    shutil.copy(certs / "leaf.key", certs / "open.key")
    (certs / "open.key").chmod(0o644)
    incoming = replace(guarded(certs)[0], **{key: str(certs / name) for key, name in change.items()})  # type: ignore[arg-type]
    with pytest.raises(StartError, match=said):
        await Server(Echo.__contract__, limits=LIMITS, incoming=incoming).listen(("127.0.0.1:0",))


async def test_a_channel_with_wrong_files_is_not_opened(certs: Path) -> None:
    good = guarded(certs)[1]
    for wrong, said in (
        (replace(good, key=""), "name both, --cert and --key"),
        (replace(good, ca=str(certs / "gone")), "gone: no such file"),
        (replace(good, key=str(certs / "entry.key")), "not the key of"),
        (replace(good, token_file=str(certs / "gone")), "gone: no such file"),
    ):
        with pytest.raises(StartError, match=said):
            open_channel("127.0.0.1:1", (), wrong)


async def test_a_token_does_not_leave_the_machine_in_plain_text(certs: Path) -> None:
    token_file = str(certs / "token")
    for target in ("dns:///models.example:443", "10.0.0.1:50051", "0.0.0.0:50051"):
        with pytest.raises(StartError, match=r"the token would go to .* unencrypted; use TLS"):
            open_channel(target, (), Outgoing(token_file=token_file))
    for target, outgoing in (
        ("unix:/tmp/a.sock", Outgoing(token_file=token_file)),
        ("dns:///127.0.0.1:50051", Outgoing(token_file=token_file)),
        ("10.0.0.1:50051", Outgoing(token_file=token_file, insecure=True)),
        ("10.0.0.1:50051", Outgoing(token_file=token_file, tls=True)),
    ):
        await open_channel(target, (), outgoing).close()


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "models.example:1", ":1", "unix-abstract:x"])
def test_listening_to_a_network_without_asking_anything_is_refused(address: str) -> None:
    with pytest.raises(
        StartError, match=r"can be reached from the network, and callers need neither TLS nor a token; .*--insecure"
    ):
        check_exposure((address,), Incoming(), insecure=False)
    check_exposure((address,), Incoming(), insecure=True)
    check_exposure((address,), Incoming(cert="a", key="b"), insecure=False)
    check_exposure((address,), Incoming(token_file="a"), insecure=False)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/tmp/a.sock"])
def test_listening_to_this_machine_is_everybodys_right(address: str) -> None:
    check_exposure((address,), Incoming(), insecure=False)


async def test_without_tls_and_token_server_and_channel_are_grpcs_own() -> None:
    channel = open_channel("127.0.0.1:1", ())
    assert type(channel).__module__.startswith("grpc.")
    await channel.close()
