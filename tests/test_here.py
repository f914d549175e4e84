"""Several deployments in one process: what a handle on a neighbour is, before and after that answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from services.scoring.v1.scoring_toolkit import ScoringBase
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, StartError
from toolkit.here import Here, callers_first
from toolkit.policy.admission import AdmissionOptions
from toolkit.transport.pool import HandleOptions


class Echo(EchoBase):
    def __init__(self) -> None:
        self.seen: Note | None = None
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def say(self, request: Note, context: Any) -> Note:
        self.seen = request
        self.began.set()
        await self.go_on.wait()
        return request


async def test_a_neighbour_that_still_starts_is_unavailable_and_then_answers_with_a_copy() -> None:
    here = Here({"echo": Echo})
    pool = here.pool("echo", "handle", EchoClient, HandleOptions())
    client = EchoClient(pool, "echo")
    with pytest.raises(ServiceError, match="none is ready") as caught:
        await client.say(Note(text="early"), timeout=0.2)
    assert caught.value.code is Code.UNAVAILABLE
    service = Echo()
    here.open("echo", Dispatcher(service, timeout=5))
    await asyncio.gather(here.wait_open(), pool.wait_ready())
    sent = Note(text="hi")
    reply = await client.say(sent, timeout=5)
    assert reply == sent
    assert service.seen is not sent
    await pool.close()


async def test_what_a_handle_may_hold_of_its_caller_holds_for_a_neighbour_too() -> None:
    here = Here({"echo": Echo})
    options = HandleOptions(bulkhead=AdmissionOptions(max_concurrency=1, max_queue=0))
    pool = here.pool("echo", "handle", EchoClient, options)
    service = Echo()
    here.open("echo", Dispatcher(service, timeout=5))
    await pool.wait_ready()
    service.go_on.clear()
    client = EchoClient(pool, "echo")
    first = asyncio.create_task(client.say(Note(text="a"), timeout=5))
    await service.began.wait()
    with pytest.raises(ServiceError) as caught:
        await client.say(Note(text="b"), timeout=5)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    service.go_on.set()
    assert (await first).text == "a"
    await pool.close()


async def test_a_neighbour_that_serves_something_else_is_refused() -> None:
    with pytest.raises(
        StartError, match=r"handle echo expects services\.echo\.v1\.Echo, and other in the same process"
    ):
        Here({"other": ScoringBase}).pool("other", "echo", EchoClient, HandleOptions())


async def test_the_load_of_a_process_is_that_of_all_who_answer() -> None:
    here = Here({"one": Echo, "two": Echo})
    assert here.load == (0, 0, 0.0)
    services = {name: Echo() for name in ("one", "two")}
    for name, service in services.items():
        service.go_on.clear()
        here.open(name, Dispatcher(service, timeout=5, admission=AdmissionOptions(max_concurrency=1, max_queue=4)))
    pools = [here.pool(name, name, EchoClient, HandleOptions()) for name in ("one", "two")]
    await asyncio.gather(*(pool.wait_ready() for pool in pools))
    calls = [asyncio.create_task(EchoClient(pool, "echo").say(Note(), timeout=5)) for pool in (*pools, pools[0])]
    await asyncio.gather(*(service.began.wait() for service in services.values()))
    assert here.load[:2] == (2, 1)
    for service in services.values():
        service.go_on.set()
    await asyncio.gather(*calls)
    assert here.load[:2] == (0, 0)
    await asyncio.gather(*(pool.close() for pool in pools))


def test_a_drain_of_several_has_one_limit() -> None:
    now = 5.0
    here = Here(clock=lambda: now)
    assert here.time_left(30.0) == 30.0
    here.begin_drain()
    now = 15.0
    assert here.time_left(30.0) == 20.0
    now = 50.0
    assert here.time_left(30.0) == 0.0


def test_callers_come_first() -> None:
    calls = {"leaf": (), "top": ("middle", "leaf"), "middle": ("leaf",)}
    assert callers_first(calls) == [["top"], ["middle"], ["leaf"]]
    assert callers_first({"a": ("b",), "b": ("a",)}) == [["a", "b"]]
