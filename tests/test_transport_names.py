"""Replicas behind a name: they come and go as it says, and what cannot be asked for a while changes nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from tests.certificates import guarded, make
from toolkit.connect import connect, pool
from toolkit.context import Context
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, StartError
from toolkit.limits import MessageLimits
from toolkit.project.certs import Wanted, make_certificates
from toolkit.security import PLAIN
from toolkit.server import EVERYBODY, Server
from toolkit.spec import Incoming, Outgoing
from toolkit.transport.names import Names
from toolkit.transport.pool import PoolTransport

LIMITS = MessageLimits()
SOON = 0.01
LONG = 60.0


class Table:
    """What names stand for: nothing until it is said."""

    def __init__(self, **hosts: Iterable[str]) -> None:
        self.hosts = {name: list(addresses) for name, addresses in hosts.items()}
        self.error: Exception = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        self.asked = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        if host not in self.hosts:
            raise self.error
        return self.hosts[host]


class Numbered(EchoBase):
    """Says which replica it is, and who was called."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0

    async def say(self, request: Note, context: Context) -> Note:
        self.calls += 1
        await asyncio.sleep(0.001)
        return Note(number=self.number)


class Fleet:
    """Replicas in this process, each on a port of its own, and what a name says of them."""

    def __init__(self) -> None:
        self.table = Table()
        self.services: dict[str, Numbered] = {}
        self.servers: dict[str, Server] = {}

    async def start(self, incoming: Incoming = EVERYBODY) -> str:
        server, service = Server(EchoBase.__contract__, limits=LIMITS, incoming=incoming), Numbered(len(self.servers))
        (address,) = await server.listen(("127.0.0.1:0",))
        await server.open(Dispatcher(service, timeout=LONG))
        self.servers[address], self.services[address] = server, service
        return address

    async def stop(self) -> None:
        await asyncio.gather(*(server.drain(0) for server in self.servers.values()))

    @asynccontextmanager
    async def handle(
        self, *addresses: str, outgoing: Outgoing = PLAIN, every: float = SOON
    ) -> AsyncIterator[tuple[EchoClient, PoolTransport]]:
        """On what the table says, asked every `every` seconds."""
        names = Names(addresses, self.table, every=every, pause=SOON)
        transport = pool(names, EchoBase.__contract__, name="leaf", limits=LIMITS, outgoing=outgoing)
        try:
            yield EchoClient(transport), transport
        finally:
            await transport.close()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    found = Fleet()
    yield found
    await found.stop()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.002)


# The names alone


async def first(names: Names) -> list[str]:
    async with aclosing(names.watch()) as watch:  # type: ignore[type-var]  # it is a generator
        return list(await anext(watch))


async def test_a_name_is_resolved_and_an_address_stays_as_it_is() -> None:
    table = Table(models=["10.0.0.1:50051", "10.0.0.2:50051", "10.0.0.1:50051"])
    names = Names(["dns:///models:50051", "unix:/run/a.sock", "10.0.0.9:1"], table)
    assert await first(names) == ["10.0.0.1:50051", "10.0.0.2:50051", "unix:/run/a.sock", "10.0.0.9:1"]
    assert names.authority("10.0.0.2:50051") == "models:50051"
    assert names.authority("10.0.0.9:1") == names.authority("10.0.0.3:1") == ""


async def test_this_machine_s_own_resolver_is_asked() -> None:
    assert "127.0.0.1:50051" in await first(Names(["dns:///localhost:50051"]))
    assert await first(Names(["dns:///[::1]:50051"])) == ["[::1]:50051"]


@pytest.mark.parametrize("name", ["dns:///no.such.name.invalid:1", "dns:///a..b:1", f"dns:///{'x' * 64}.invalid:1"])
async def test_what_does_not_resolve_stands_for_nothing_and_says_why(name: str) -> None:
    names = Names([name])
    assert await first(names) == []
    assert str(names).startswith(f"{name} (")


async def test_a_name_that_stops_resolving_keeps_what_it_stood_for_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "toolkit")
    table = Table(models=["10.0.0.1:1"])
    async with aclosing(Names(["dns:///models:1"], table, every=0.0, pause=0.0).watch()) as watch:  # type: ignore[type-var]  # it is a generator
        before = await anext(watch)
        known = table.hosts.pop("models")
        during = [await anext(watch) for _ in range(5)]
        table.hosts["models"] = []
        nowhere = await anext(watch)
        table.hosts["models"] = [*known, "10.0.0.2:1"]
        after = await anext(watch)
    assert [before, *during, nowhere] == [["10.0.0.1:1"]] * 7
    assert after == ["10.0.0.1:1", "10.0.0.2:1"]
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "dns:///models:1 does not resolve: Name or service not known; calls go on to 10.0.0.1:1",
        "dns:///models:1 resolves: 10.0.0.1:1, 10.0.0.2:1",
    ]


@pytest.mark.parametrize(
    "name", ["dns:///models", "dns:///models:http", "dns:///:1", "dns://8.8.8.8/models:1", "dns:///"]
)
def test_a_name_has_a_port(name: str) -> None:
    with pytest.raises(ValueError, match="write HOST:PORT"):
        pool([name], EchoBase.__contract__, name="leaf", limits=LIMITS)


async def test_one_name_that_does_not_resolve_is_no_matter_to_the_others() -> None:
    assert await first(Names(["dns:///gone:1", "dns:///here:1"], Table(here=["10.0.0.1:1"]))) == ["10.0.0.1:1"]


async def test_whoever_asks_again_does_not_wait_for_the_next_time() -> None:
    table = Table(models=["10.0.0.1:1"])
    names = Names(["dns:///models:1"], table, every=LONG, pause=0.0)
    async with aclosing(names.watch()) as watch:  # type: ignore[type-var]  # it is a generator
        await anext(watch)
        names.ask_again()
        asyncio.get_running_loop().call_later(0.01, names.ask_again)
        await asyncio.wait_for(anext(watch), 10)
    assert table.asked >= 2


# Handles


async def test_calls_spread_over_all_that_the_name_stands_for(fleet: Fleet) -> None:
    fleet.table.hosts["models"] = [await fleet.start() for _ in range(3)]
    async with fleet.handle("dns:///models:1") as (echo, transport):
        await until(lambda: [replica.is_ready for replica in transport.replicas] == [True] * 3)
        for _ in range(3):
            await asyncio.gather(*(echo.say(Note(), timeout=10) for _ in range(60)))
    assert all(service.calls > 10 for service in fleet.services.values())


async def test_the_first_call_waits_until_the_name_was_asked(fleet: Fleet) -> None:
    address = await fleet.start()
    async with fleet.handle("dns:///models:1") as (echo, _):
        fleet.table.hosts["models"] = [address]
        assert (await echo.say(Note(), timeout=10)).number == 0


async def test_a_name_that_never_resolved_is_an_error_of_the_call(fleet: Fleet) -> None:
    async with fleet.handle("dns:///models:1") as (echo, _):
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(), timeout=10)
    assert caught.value.code == Code.UNAVAILABLE
    assert "none is ready, at dns:///models:1 (Name or service not known)" in caught.value.message


async def test_it_may_begin_to_resolve_later(fleet: Fleet) -> None:
    async with fleet.handle("dns:///models:1") as (echo, transport):
        await until(lambda: fleet.table.asked > 1)
        fleet.table.hosts["models"] = [await fleet.start()]
        await asyncio.wait_for(transport.wait_ready(), 10)
        assert (await echo.say(Note(), timeout=10)).number == 0


async def test_replicas_come_and_go_by_name_under_load_without_a_failed_call(fleet: Fleet) -> None:
    a, b, c = [await fleet.start() for _ in range(3)]
    hosts = fleet.table.hosts
    hosts["models"] = [a]
    done, stop = 0, asyncio.Event()
    async with fleet.handle("dns:///models:1") as (echo, transport):

        async def lane() -> None:
            nonlocal done
            while not stop.is_set():
                await echo.say(Note(), timeout=10)
                done += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(lane())
            for addresses in ([a, b, c], [b], [c], [], [a, b]):  # two of these leave none that was there before
                wanted = set(addresses) or {c}  # a name for nothing keeps what it stood for
                hosts["models"] = addresses
                await until(lambda wanted=wanted: {each.address for each in transport.replicas} == wanted)  # type: ignore[misc]
                before = {address: fleet.services[address].calls for address in wanted}
                await until(
                    lambda before=before: all(fleet.services[each].calls > before[each] + 5 for each in before)  # type: ignore[misc]
                )
            stop.set()
    assert done > 50


async def test_a_replica_that_dies_is_reason_to_ask_again(fleet: Fleet) -> None:
    first, second = await fleet.start(), await fleet.start()
    fleet.table.hosts["models"] = [first]
    async with fleet.handle("dns:///models:1", every=LONG) as (echo, transport):
        await echo.say(Note(), timeout=10)
        fleet.table.hosts["models"] = [second]
        await fleet.servers[first].drain(0)
        await until(lambda: list(transport.transports) == [second])
        assert (await echo.say(Note(), timeout=10)).number == 1


async def test_a_handle_that_is_closed_asks_no_more(fleet: Fleet) -> None:
    fleet.table.hosts["models"] = [await fleet.start()]
    async with fleet.handle("dns:///models:1") as (echo, transport):
        await echo.say(Note(), timeout=10)
    asked = fleet.table.asked
    await asyncio.sleep(5 * SOON)
    assert (fleet.table.asked, transport.transports) == (asked, {})


async def test_a_client_from_outside_takes_a_name(fleet: Fleet) -> None:
    address = await fleet.start()
    async with connect(EchoClient, f"dns:///localhost:{address.rpartition(':')[2]}") as echo:
        assert (await echo.say(Note(), timeout=10)).number == 0


# Guarded ones


async def test_the_certificate_is_for_the_name_and_not_for_what_it_resolves_to(fleet: Fleet, tmp_path: Path) -> None:
    make_certificates(tmp_path, [Wanted(name="leaf", graph="g", hosts=("models.test",))], days=3)
    address = await fleet.start(Incoming(cert=str(tmp_path / "leaf.crt"), key=str(tmp_path / "leaf.key")))
    fleet.table.hosts |= {"models.test": [address], "other.test": [address]}
    tls = Outgoing(tls=True, ca=str(tmp_path / "ca.crt"))
    async with AsyncExitStack() as stack:
        right, _ = await stack.enter_async_context(fleet.handle("dns:///models.test:1", outgoing=tls))
        wrong, _ = await stack.enter_async_context(fleet.handle("dns:///other.test:1", outgoing=tls))
        named = replace(tls, server_name="leaf.g")
        told, _ = await stack.enter_async_context(fleet.handle("dns:///other.test:1", outgoing=named))
        assert (await right.say(Note(), timeout=10)).number == 0
        assert (await told.say(Note(), timeout=10)).number == 0
        with pytest.raises(ServiceError, match="server_name") as caught:
            await wrong.say(Note(), timeout=10)
    assert caught.value.code == Code.UNAVAILABLE


async def test_what_is_wrong_with_files_is_said_at_once(tmp_path: Path) -> None:
    make(tmp_path)
    good = guarded(tmp_path)[1]
    for outgoing, said in (
        (replace(good, key=""), "name both"),
        (replace(good, ca=str(tmp_path / "gone")), "no such file"),
        (Outgoing(token_file=str(tmp_path / "gone"), insecure=True), "no such file"),
        (Outgoing(token_file=str(tmp_path / "token")), "the token would go to models:1 unencrypted"),
    ):
        with pytest.raises(StartError, match=said):
            pool(["dns:///models:1"], EchoBase.__contract__, name="leaf", limits=LIMITS, outgoing=outgoing)


async def test_a_file_that_goes_wrong_later_keeps_new_replicas_out_until_it_is_right(
    fleet: Fleet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    incoming, outgoing = guarded(make(tmp_path))
    first, second = await fleet.start(incoming), await fleet.start(incoming)
    fleet.table.hosts["models"] = [first]
    async with fleet.handle("dns:///models:1", outgoing=outgoing) as (echo, transport):
        await echo.say(Note(), timeout=10)
        token = tmp_path / "token"
        token.rename(tmp_path / "moved")
        fleet.table.hosts["models"] = [first, second]
        await until(lambda: f"{second} cannot be called yet: {token}: no such file" in caplog.text)
        assert (await echo.say(Note(), timeout=10)).number == 0
        (tmp_path / "moved").rename(token)
        await until(lambda: set(transport.transports) == {first, second})
        await until(lambda: all(replica.is_ready for replica in transport.replicas))
