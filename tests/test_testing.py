"""The helpers that users test their services with."""

from __future__ import annotations

import asyncio

import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Line, Note
from services.scoring.v1.scoring_toolkit import ScoringClient
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.testing import FakeClock, serve


class Keeps(EchoBase):
    async def ping(self, request: Line, context: Context) -> Line:
        self.kept = request
        return request


class Wrong(EchoBase):
    async def ping(self, request: Line, context: Context) -> Line:
        return Line(number=1 << 70)


async def test_a_service_answers_without_sockets() -> None:
    async with serve(Echo(), EchoClient) as echo:
        assert await echo.say(Note(text="t")) == Note(text="t")
        assert [note.number async for note in echo.repeat(Note(times=3))] == [0, 1, 2]


async def test_a_client_of_another_service_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"^Echo serves services\.echo\.v1\.Echo, and ScoringClient calls services\.scoring"
    ):
        async with serve(Echo(), ScoringClient):
            pass


async def test_what_cannot_be_encoded_fails_here_as_between_processes(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(Wrong(), EchoClient) as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.ping(Line())
        with pytest.raises(ValueError, match=r"Line\.number"):
            await echo.ping(Line(number=1 << 70))
    assert caught.value.code == Code.INTERNAL
    assert "Line.number: int" in caplog.text


async def test_without_strict_messages_are_handed_over_and_still_apart() -> None:
    service = Keeps()
    async with serve(service, EchoClient, strict=False) as echo:
        sent = Line(text="t")
        received = await echo.ping(sent)
    assert received == service.kept == sent
    assert len({id(received), id(service.kept), id(sent)}) == 3


async def test_calls_that_still_run_at_the_end_are_cancelled() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    class Waits(EchoBase):
        async def ping(self, request: Line, context: Context) -> Line:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

    async with serve(Waits(), EchoClient) as echo:
        call = asyncio.create_task(echo.ping(Line()))
        await began.wait()
    assert ended.is_set()
    await asyncio.wait([call])
    assert call.cancelled() or isinstance(call.exception(), ServiceError)


async def test_a_stream_that_begins_in_the_moment_of_the_end_ends_too() -> None:
    async with serve(Echo(), EchoClient) as echo:
        replies = echo.repeat(Note(times=3))
        reading = asyncio.create_task(anext(replies))
        await asyncio.sleep(0)
    await asyncio.wait([reading], timeout=5)
    assert reading.done()
    assert reading.cancelled() or isinstance(reading.exception(), ServiceError)


def test_a_fake_clock_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(2.5)
    assert clock() == 7.5
