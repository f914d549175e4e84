"""Several calls of which some fail: what went well is kept, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack

import pytest

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.context import Context
from toolkit.ensemble import settled
from toolkit.errors import Code, ServiceError
from toolkit.service import depends
from toolkit.testing import serve


class Model(EchoBase):
    """Answers, fails or hangs, as the text asks."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def say(self, request: Note, context: Context) -> Note:
        self.began.set()
        if self.name in request.counts:
            if request.counts[self.name]:
                raise ServiceError(Code(request.counts[self.name]), f"{self.name} fails")
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return Note(text=self.name)


class Ensemble(EchoBase):
    """As a user writes it: the answer is what those that answer say."""

    one = depends(EchoClient)
    two = depends(EchoClient)
    three = depends(EchoClient)

    async def say(self, request: Note, context: Context) -> Note:
        replies = await settled(
            self.one.say(request), self.two.say(request), self.three.say(request, timeout=request.weight)
        )
        good = [reply for reply in replies if not isinstance(reply, ServiceError)]
        if not good:
            raise ServiceError(Code.UNAVAILABLE, "no model answers")
        return Note(text=" ".join(reply.text for reply in good), number=len(replies) - len(good))


@pytest.fixture
async def models() -> dict[str, Model]:
    return {name: Model(name) for name in ("one", "two", "three")}


@pytest.fixture
async def ensemble(models: dict[str, Model]) -> AsyncIterator[EchoClient]:
    async with AsyncExitStack() as stack:
        service = Ensemble()
        for name, model in models.items():
            setattr(service, name, await stack.enter_async_context(serve(model, EchoClient)))
        yield await stack.enter_async_context(serve(service, EchoClient))


async def test_with_no_failure_all_is_there_in_order(ensemble: EchoClient) -> None:
    assert await ensemble.say(Note(weight=20)) == Note(text="one two three")


async def test_what_went_well_is_kept_beside_a_failure_and_a_deadline(ensemble: EchoClient) -> None:
    reply = await ensemble.say(Note(counts={"one": Code.INTERNAL, "three": 0}, weight=0.2))
    assert reply == Note(text="two", number=2)


async def test_nothing_but_failures_is_for_the_service_to_judge(ensemble: EchoClient) -> None:
    everything = dict.fromkeys(("one", "two", "three"), int(Code.NOT_FOUND))
    with pytest.raises(ServiceError, match="UNAVAILABLE: no model answers"):
        await ensemble.say(Note(counts=everything, weight=20))


async def test_a_caller_that_gives_up_cancels_all(ensemble: EchoClient, models: dict[str, Model]) -> None:
    call = asyncio.create_task(ensemble.say(Note(counts={"one": 0, "two": 0}, weight=20)))
    await asyncio.wait_for(asyncio.gather(models["one"].began.wait(), models["two"].began.wait()), 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(asyncio.gather(models["one"].cancelled.wait(), models["two"].cancelled.wait()), 10)


async def fail(error: Exception) -> Note:
    raise error


async def wait(cancelled: list[str]) -> Note:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.append("cancelled")
        raise
    raise AssertionError


async def test_the_error_itself_takes_the_place_of_the_reply() -> None:
    error = ServiceError(Code.DATA_LOSS, "torn", path=["leaf"])
    assert await settled(fail(error), asyncio.sleep(0, Note(text="good"))) == [error, Note(text="good")]


async def test_a_bug_is_raised_as_it_is_and_ends_the_others() -> None:
    cancelled: list[str] = []
    mine = LookupError("a bug")
    calls: list[Awaitable[Note]] = [wait(cancelled), fail(mine), fail(ServiceError(Code.NOT_FOUND, "gone"))]
    with pytest.raises(LookupError) as caught:
        await settled(*calls)
    assert caught.value is mine
    assert cancelled == ["cancelled"]


async def test_of_no_calls_there_is_nothing() -> None:
    assert await settled() == []
