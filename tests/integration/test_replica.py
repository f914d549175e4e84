"""One replica alone, as a real process: it serves, it drains, and it ends with its launcher."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from services.echo.v1.echo_toolkit import EchoClient, Note
from tests.integration.alone import alone
from tests.ports import pick_port
from toolkit import replica
from toolkit.connect import connect
from toolkit.contract import fetch_service, served
from toolkit.errors import Code, ServiceError

pytestmark = pytest.mark.integration

ECHO = "services.echo.v1.Echo"
CLASS = "services.echo.service:Echo"
CLASSES = """
import sys, threading
from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient
from toolkit.service import depends, progress


class Loads(Echo):
    def __init__(self):
        progress("read weights", 3, 10)
        print("loading", file=sys.stderr, flush=True)
        threading.Event().wait()


class Caller(Echo):
    leaf = depends(EchoClient)

    async def say(self, request, context):
        return await self.leaf.say(request)


class Fails(Echo):
    def __init__(self):
        raise RuntimeError("no weights here")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "classes.py").write_text(CLASSES)
    return tmp_path


async def health(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=ECHO)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
        return int(answer.status)


async def wait_not_serving(address: str, watching: asyncio.Event) -> None:
    """Until it says so, of which it is asked from `watching` on."""
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=ECHO)
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(request, timeout=30):
            watching.set()
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                return


# What it serves


async def test_it_answers_at_each_of_its_addresses_and_says_that_it_is_healthy(folder: Path) -> None:
    options = ("--listen", "127.0.0.1:0", "--listen", f"unix:{folder}/echo.sock")
    with alone(CLASS, *options, folder=folder) as process:
        addresses = process.wait_ready()
        assert len(addresses) == 2
        for address in addresses:
            async with connect(EchoClient, address) as echo:
                assert await echo.say(Note(text="t"), timeout=10) == Note(text="t")
            assert await health(address) == health_pb2.HealthCheckResponse.SERVING
        process.process.send_signal(signal.SIGTERM)
        assert process.wait_exit() == 0
    assert process.errors == []


@pytest.mark.parametrize("options", [(), ("--reflection",)], ids=["without", "with"])
async def test_reflection_is_served_where_it_is_wanted(folder: Path, options: tuple[str, ...]) -> None:
    with alone(CLASS, *options, folder=folder) as process:
        (address,) = process.wait_ready()
        async with grpc.aio.insecure_channel(address) as channel:
            found = await fetch_service(channel, ECHO)
            assert (found is not None) == bool(options)
            assert await served(channel) == {ECHO}


async def test_the_environment_says_what_flags_do_not(folder: Path) -> None:
    env = {"TOOLKIT_LISTEN": json.dumps([f"unix:{folder}/other.sock"]), "TOOLKIT_DEPLOYMENT": "mine"}
    with alone(CLASS, folder=folder, env=env) as process:
        assert "mine serves " in process.wait_line(" serves ")
        async with connect(EchoClient, f"unix:{folder}/other.sock") as echo:
            assert await echo.say(Note(), timeout=10) == Note()


async def test_a_handle_is_given_by_its_address_and_waited_for(folder: Path) -> None:
    """The caller starts first: it says whom it calls, and is ready once the other is."""
    address = f"unix:{folder}/leaf.sock"
    with alone("classes:Caller", "--handle", f"leaf={address}", folder=folder) as caller:
        assert f"handle leaf calls {address}" in caller.wait_line("handle leaf")
        with alone(CLASS, "--listen", address, folder=folder) as leaf:
            leaf.wait_ready()
            (entry,) = caller.wait_ready()
            async with connect(EchoClient, entry) as echo:
                assert await echo.say(Note(text="through"), timeout=10) == Note(text="through")


async def test_a_handle_is_given_by_a_name_too(folder: Path) -> None:
    port = pick_port()
    with alone("classes:Caller", "--handle", f"leaf=dns:///localhost:{port}", folder=folder) as caller:
        assert f"handle leaf calls dns:///localhost:{port}" in caller.wait_line("handle leaf")
        with alone(CLASS, "--listen", f"127.0.0.1:{port}", folder=folder) as leaf:
            leaf.wait_ready()
            (entry,) = caller.wait_ready()
            async with connect(EchoClient, entry) as echo:
                assert await echo.say(Note(text="through"), timeout=10) == Note(text="through")


# How it ends


async def test_sigterm_lets_a_call_in_flight_finish(folder: Path) -> None:
    watching, draining = asyncio.Event(), asyncio.Event()

    async def notes() -> AsyncIterator[Note]:
        yield Note(text="before")
        await draining.wait()
        yield Note(text="after")

    with alone(CLASS, folder=folder) as process:
        (address,) = process.wait_ready()
        drain = asyncio.create_task(wait_not_serving(address, watching))
        await watching.wait()
        async with connect(EchoClient, address) as echo, echo.chat(notes(), timeout=30) as replies:
            assert (await anext(replies)).text == "before"
            process.process.send_signal(signal.SIGTERM)
            await drain
            draining.set()
            assert [note.text async for note in replies] == ["after"]
        assert process.wait_exit() == 0


async def test_a_drain_has_a_limit_and_says_what_it_cut_off(folder: Path) -> None:
    async def forever() -> AsyncIterator[Note]:
        yield Note(text="before")
        await asyncio.Event().wait()

    with alone(CLASS, folder=folder, env={"TOOLKIT_DRAIN_TIMEOUT": "0.1"}) as process:
        (address,) = process.wait_ready()
        async with connect(EchoClient, address) as echo, echo.chat(forever(), timeout=30) as replies:
            await anext(replies)
            process.process.send_signal(signal.SIGTERM)
            with pytest.raises(ServiceError) as caught:
                await anext(replies)
        assert process.wait_exit() == replica.DRAIN_INCOMPLETE
    assert caught.value.code in (Code.UNAVAILABLE, Code.CANCELLED)
    assert "1 calls were still in flight after 0.1 s, and were cancelled" in process.said[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_it_still_loads(folder: Path, number: int) -> None:
    with alone("classes:Loads", folder=folder) as process:
        process.wait_line("loading")
        process.process.send_signal(number)
        assert process.wait_exit() == 0


def test_a_start_that_takes_too_long_is_given_up(folder: Path) -> None:
    with alone("classes:Loads", folder=folder, env={"TOOLKIT_START_TIMEOUT": "0.5"}) as process:
        assert process.wait_exit() == 1
    assert process.errors == ["error: not ready after 0.5 s; raise start_timeout if it needs longer"]


# With a launcher


@pytest.fixture
def launcher() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs:
        yield ours, theirs


def events(ours: socket.socket) -> Iterator[dict[str, object]]:
    with ours.makefile() as lines:
        yield from map(json.loads, lines)


def test_it_tells_its_launcher_and_ends_with_it(folder: Path, launcher: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = launcher
    env = {"TOOLKIT_CONTROL_FD": str(theirs.fileno())}
    with alone(CLASS, folder=folder, env=env, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        said = events(ours)
        assert next(said) == {"event": "described", "contract": ECHO, "handles": {}, "batched": {}, "companions": []}
        assert next(said)["event"] == "ready"
        said.close()  # type: ignore[attr-defined]  # a generator
        ours.shutdown(socket.SHUT_RDWR)
        assert process.wait_exit() == 1


def test_it_tells_its_launcher_how_its_start_goes_on_and_why_it_failed(
    folder: Path, launcher: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = launcher
    env = {"TOOLKIT_CONTROL_FD": str(theirs.fileno()), "TOOLKIT_START_TIMEOUT": "0.5"}
    with alone("classes:Loads", folder=folder, env=env, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        told = list(events(ours))
        assert process.wait_exit() == 1
    assert [each["event"] for each in told] == ["described", "progress", "failed"]
    assert told[1] == {"event": "progress", "phase": "read weights", "done": 3, "total": 10}
    assert told[2]["message"] == "not ready after 0.5 s; raise start_timeout if it needs longer"
    assert process.errors == [], "the launcher says it"


# Wrong usage


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "TOOLKIT_SERVICE: missing; name the service: package.module:Class"),
        (["a:B", "--args", "{"], "argument --args: not JSON: Expecting property name"),
        (["a:B", "--args", "[" * 100_000], "argument --args: not JSON: "),
        (["a:B", "--args", "[1]"], 'argument --args: must be a JSON object, {"name": value}'),
        (["a:B", "--listen", "50051"], "50051: write HOST:PORT, or unix:/absolute/path"),
        (["a:B", "--listen", "localhost"], "localhost: write HOST:PORT, or unix:/absolute/path"),
        (["a:B", "--listen", "127.0.0.1:70000"], "127.0.0.1:70000: write HOST:PORT"),
        (["a:B", "--listen", "unix:relative.sock"], "unix:relative.sock: write unix:/absolute/path"),
        (["a:B", "--listen", "unix:/" + "x" * 103], ": a socket's path has at most 103 bytes"),
        (["a:B", "--handle", "leaf"], "--handle leaf: write NAME=ADDRESS"),
        (["a:B", "--handle", "leaf="], "--handle leaf: write NAME=ADDRESS"),
        (["a:B", "--handle", "leaf=somewhere"], "somewhere: write HOST:PORT"),
        (["a:B", "--handle", "leaf=dns:///somewhere"], "somewhere: write HOST:PORT"),
        (["a:B", "--listen", "dns:///somewhere:1"], "dns:///somewhere:1: write HOST:PORT"),
        (["a:B", "--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["replica", *options])
    for name in [name for name in os.environ if name.startswith("TOOLKIT_")]:
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as caught:
        replica.main()
    said = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert said[0].startswith("usage: python -m toolkit.replica")
    assert reason in said[-1]


def test_a_variable_that_cannot_be_read_is_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["replica", "a:B"])
    monkeypatch.setenv("TOOLKIT_TIMEOUT", "soon")
    with pytest.raises(SystemExit) as caught:
        replica.main()
    assert caught.value.code == 2
    assert "TOOLKIT_TIMEOUT: not JSON" in capsys.readouterr().err


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


async def test_metrics_are_read_beside_the_calls(folder: Path) -> None:
    port = pick_port()
    with alone(CLASS, "--listen", "127.0.0.1:0", "--metrics", f"127.0.0.1:{port}", folder=folder) as running:
        running.wait_line(f"metrics on http://127.0.0.1:{port}/metrics")
        (address,) = running.wait_ready()
        async with connect(EchoClient, address) as echo:
            await echo.say(Note(text="t"), metadata={"x-hostile": 'a"} 1'})
        text = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics")
    families = {each.name: each for each in text_string_to_metric_families(text)}
    started = {each.labels["grpc_method"]: each.value for each in families["grpc_server_call_started"].samples}
    assert started[f"{ECHO}/Say"] == 1
    assert sum(started.values()) == 1
    (inflight,) = families["toolkit_server_inflight"].samples
    assert (inflight.labels, inflight.value) == ({"deployment": "Echo"}, 0)


def test_a_metrics_port_that_is_taken_stops_the_start(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with alone(CLASS, "--listen", "127.0.0.1:0", "--metrics", where, folder=folder) as running:
            assert running.wait_exit() == 1
            assert running.errors == [
                f"error: cannot listen on {where}: it is taken; stop whoever holds it, or name another port"
            ]
