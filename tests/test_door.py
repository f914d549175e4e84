"""Where calls wait for their turn: who is let in, who is woken, and who has gone."""

from __future__ import annotations

import asyncio

import pytest

from toolkit.deadline import Deadline
from toolkit.door import Door
from toolkit.errors import Code, ServiceError
from toolkit.policy.admission import AdmissionOptions

LONG = 60.0


def door(limit: int = 1, queue: int | None = None) -> Door:
    return Door(AdmissionOptions(max_concurrency=limit, max_queue=queue), "leaf")


async def turns(count: int = 5) -> None:
    """Let the event loop run what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


class Line:
    """Calls at one door, and the order in which they got in."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.inside: list[str] = []
        self.calls: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, timeout: float | None = None) -> None:
        async def enter() -> None:
            await self.door.enter(None if timeout is None else Deadline.after(timeout))
            self.inside.append(name)

        self.calls[name] = asyncio.create_task(enter())
        await turns()

    async def leave(self, seconds: float | None = None) -> None:
        self.door.leave(seconds)
        await turns()

    def failure(self, name: str) -> ServiceError:
        found = self.calls[name].exception()
        assert isinstance(found, ServiceError)
        return found

    @property
    def counts(self) -> tuple[int, int]:
        return self.door.admission.running, self.door.admission.queued


async def test_those_who_wait_get_in_as_they_came() -> None:
    line = Line(door(limit=2))
    for name in "abcde":
        await line.come(name)
    assert line.inside == ["a", "b"]
    for _ in range(3):
        await line.leave()
    assert line.inside == list("abcde")
    assert line.counts == (2, 0)


async def test_nobody_waits_where_there_is_room() -> None:
    """Not even for the event loop."""
    free = door(limit=3)
    for _ in range(3):
        with pytest.raises(StopIteration):
            free.enter(None).send(None)


async def test_one_that_leaves_lets_one_in() -> None:
    line = Line(door(limit=1))
    for name in "abc":
        await line.come(name)
    await line.leave()
    assert line.inside == ["a", "b"]
    assert line.counts == (1, 1)


async def test_beyond_the_queue_the_answer_is_no_and_immediate() -> None:
    line = Line(door(limit=1, queue=1))
    for name in "abc":
        await line.come(name)
    assert line.failure("c").code == Code.RESOURCE_EXHAUSTED
    assert line.failure("c").message == "leaf is busy: 1 calls run and 1 wait"
    assert line.failure("c").retry_after == pytest.approx(0.05)
    await line.leave()
    assert line.inside == ["a", "b"]


async def test_a_call_that_cannot_make_its_deadline_is_refused_and_need_not_come_back() -> None:
    line = Line(door(limit=1))
    await line.come("a")
    await line.leave(10.0)  # calls take ten seconds, it has learned
    await line.come("b")
    await line.come("c", timeout=5.0)
    assert line.failure("c").code == Code.RESOURCE_EXHAUSTED
    assert line.failure("c").message == "leaf is too busy to answer before the deadline"
    assert line.failure("c").retry_after == -1.0


async def test_a_call_whose_time_has_run_out_when_its_turn_comes_hears_so_and_the_next_gets_in() -> None:
    line = Line(door(limit=1))
    await line.come("a")
    await line.come("b", timeout=5.0)
    await line.come("c")
    await line.leave(10.0)
    assert line.failure("b").retry_after == -1.0
    assert line.inside == ["a", "c"]
    assert line.counts == (1, 0)


async def test_the_deadline_ends_the_wait() -> None:
    line = Line(door(limit=1))
    await line.come("a")
    await line.come("b", timeout=0.01)
    await asyncio.wait([line.calls["b"]])
    assert line.failure("b").code == Code.DEADLINE_EXCEEDED
    assert line.failure("b").message == "the deadline passed in the queue of leaf"
    assert line.counts == (1, 0)
    assert line.door.admission.expired == 1


async def test_who_gives_up_is_out_of_the_queue() -> None:
    line = Line(door(limit=1))
    for name in "abc":
        await line.come(name)
    line.calls["b"].cancel()
    await turns()
    assert line.counts == (1, 1)
    assert line.door.admission.cancelled == 1
    await line.leave()
    assert line.inside == ["a", "c"]


async def test_who_gives_up_just_as_its_turn_has_come_passes_it_on() -> None:
    line = Line(door(limit=1))
    for name in "abc":
        await line.come(name)
    line.door.leave(None)  # b is called
    line.calls["b"].cancel()  # and does not hear it any more
    await turns()
    assert line.calls["b"].cancelled()
    assert line.inside == ["a", "c"]
    await line.leave()
    assert line.counts == (0, 0)


async def test_everybody_may_give_up() -> None:
    line = Line(door(limit=1))
    for name in "abcd":
        await line.come(name)
    for name in "bcd":
        line.calls[name].cancel()
    await turns()
    await line.leave()
    assert line.counts == (0, 0)
    await line.come("e", timeout=LONG)
    assert line.inside == ["a", "e"]
