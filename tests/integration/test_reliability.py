"""Replicas as real processes that die, hang and restart while calls go on. Nobody may notice."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from tests.integration.alone import Alone, alone
from toolkit.connect import pool
from toolkit.deadline import Deadline
from toolkit.errors import Code, ServiceError
from toolkit.limits import MessageLimits
from toolkit.policy.replica import Replica
from toolkit.transport.base import Call
from toolkit.transport.pool import PoolTransport

pytestmark = pytest.mark.integration

SAY = next(method for method in EchoBase.__contract__.methods if method.attribute == "say")
ONCE = replace(SAY, idempotent=False)
LONG = 30.0
LANES = 6
CLASSES = """
import asyncio, os
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.service import depends


class Leaf(EchoBase):
    async def say(self, request, context):
        await asyncio.sleep(0.005)
        return Note(number=os.getpid())


class Front(EchoBase):
    leaf = depends(EchoClient)

    async def say(self, request, context):
        return await self.leaf.say(request)


class Writes(EchoBase):
    # Each call leaves its number in the file of that name, and then never ends.
    async def say(self, request, context):
        with open("written", "a") as file:
            file.write(f"{request.number}\\n")
        await asyncio.Event().wait()
"""


class Restartable:
    """One replica, at one address for all of its lives."""

    def __init__(self, stack: ExitStack, folder: Path, cls: str, number: int, *options: str) -> None:
        self.address = f"unix:{folder}/{cls}{number}.sock"
        self._stack = stack
        self._folder = folder
        self._command = (f"classes:{cls}", "--listen", self.address, *options)
        self._now: Alone | None = None

    @property
    def process(self) -> Alone:
        assert self._now is not None
        return self._now

    async def start(self) -> None:
        """Return once it is ready."""
        self._now = self._stack.enter_context(alone(*self._command, folder=self._folder))
        await asyncio.to_thread(self._now.wait_ready)

    def signal(self, number: signal.Signals) -> None:
        self.process.process.send_signal(number)

    async def wait_exit(self) -> int:
        return await asyncio.to_thread(self.process.wait_exit)


class Fleet:
    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder

    async def start(self, cls: str, count: int, *options: str) -> list[Restartable]:
        found = [Restartable(self._stack, self._folder, cls, number, *options) for number in range(count)]
        await asyncio.gather(*(each.start() for each in found))
        return found


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    (tmp_path / "classes.py").write_text(CLASSES)
    with ExitStack() as stack:
        yield Fleet(stack, tmp_path)


@asynccontextmanager
async def handle(replicas: Sequence[Restartable]) -> AsyncIterator[PoolTransport]:
    """As a replica has it, all of whose other side is ready."""
    transport = pool(
        [each.address for each in replicas], EchoBase.__contract__, name="leaf", limits=MessageLimits(), keepalive=True
    )
    try:
        await until(lambda: all(replica.is_ready for replica in transport.replicas))
        yield transport
    finally:
        await transport.close()


class Load:
    """Calls one after the other, in several lanes. A call that fails ends it, with its error."""

    def __init__(self, transport: PoolTransport) -> None:
        self.answers: Counter[int] = Counter()
        """Process → calls that it answered."""
        self._echo = EchoClient(transport)
        self._stopping = asyncio.Event()

    async def __aenter__(self) -> Load:
        self._lanes = asyncio.TaskGroup()
        await self._lanes.__aenter__()
        for _ in range(LANES):
            self._lanes.create_task(self._lane())
        await self.wait_more()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stopping.set()
        await self._lanes.__aexit__(*error)  # type: ignore[arg-type]  # as it came

    async def wait_more(self, count: int = 100) -> None:
        """Until so many more calls have been answered."""
        goal = self.answers.total() + count
        await until(lambda: self.answers.total() >= goal)

    async def wait_answered_by(self, replica: Restartable) -> None:
        pid = replica.process.process.pid
        before = self.answers[pid]
        await until(lambda: self.answers[pid] > before)

    async def _lane(self) -> None:
        while not self._stopping.is_set():
            reply = await self._echo.say(Note(), timeout=LONG)
            self.answers[reply.number] += 1


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.005)


def state(transport: PoolTransport, replica: Restartable) -> Replica:
    return next(each for each in transport.replicas if each.address == replica.address)


def is_ready(transport: PoolTransport, replica: Restartable) -> bool:
    return state(transport, replica).is_ready


async def test_killing_a_replica_fails_no_idempotent_call_and_it_comes_back(fleet: Fleet) -> None:
    replicas = await fleet.start("Leaf", 3)
    async with handle(replicas) as transport, Load(transport) as load:
        for victim in replicas[:2]:
            await load.wait_answered_by(victim)
            victim.signal(signal.SIGKILL)
            await victim.wait_exit()
            await load.wait_more()
            await victim.start()
            await load.wait_answered_by(victim)


async def test_a_replica_that_hangs_is_noticed_in_seconds_and_its_calls_go_elsewhere(fleet: Fleet) -> None:
    replicas = await fleet.start("Leaf", 3)
    stopped = replicas[0]
    async with handle(replicas) as transport, Load(transport) as load:
        stopped.signal(signal.SIGSTOP)
        await until(lambda: state(transport, stopped).outstanding)
        async with asyncio.timeout(10):  # far from the minutes that gRPC gives it by itself
            await until(lambda: not is_ready(transport, stopped))
        await until(lambda: not state(transport, stopped).outstanding)  # its calls were answered by others
        await load.wait_more()
        stopped.signal(signal.SIGCONT)
        await load.wait_answered_by(stopped)


async def test_a_restart_of_every_replica_of_every_tier_fails_no_call(fleet: Fleet) -> None:
    leaves = await fleet.start("Leaf", 3)
    reach = [option for each in leaves for option in ("--handle", f"leaf={each.address}")]
    fronts = await fleet.start("Front", 2, *reach)
    async with handle(fronts) as transport, Load(transport) as load:
        for replica in (*fronts, *leaves):
            replica.signal(signal.SIGTERM)
            assert await replica.wait_exit() == 0, "nothing was cut off"
            await load.wait_more()
            await replica.start()
            if replica in leaves:
                await load.wait_answered_by(replica)
            else:
                await until(partial(is_ready, transport, replica))
            await load.wait_more()


async def test_what_is_not_idempotent_never_runs_twice(fleet: Fleet, tmp_path: Path) -> None:
    """Not even where its replica dies under it, and others are there."""
    replicas = await fleet.start("Writes", 2)
    written = tmp_path / "written"
    async with handle(replicas) as transport:
        deadline = Deadline.after(LONG)
        calls = [
            asyncio.create_task(transport.unary(ONCE, Note(number=number), Call(deadline))) for number in range(20)
        ]
        await until(lambda: written.exists() and len(written.read_text().split()) == len(calls))
        on_victim = state(transport, replicas[0]).outstanding
        assert 0 < on_victim < len(calls)
        replicas[0].signal(signal.SIGKILL)
        await until(lambda: sum(call.done() for call in calls) == on_victim)
        for call in calls:
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
    failed = [end for end in ends if isinstance(end, ServiceError)]
    assert [error.code for error in failed] == [Code.UNAVAILABLE] * on_victim
    assert not any(error.unseen for error in failed)
    assert sorted(map(int, written.read_text().split())) == list(range(20))
