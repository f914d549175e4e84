"""What a caller learns when a call fails, and what a handler learns when its caller has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.rpc import error_details_pb2

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, Note
from tests.conformance.conftest import Serve
from toolkit.context import Context
from toolkit.errors import Code, ServiceError


class Failing(EchoBase):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def say(self, request: Note, context: Context) -> Note:
        raise self.error

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        yield Note(text="before")
        raise self.error

    async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
        raise self.error


class Waiting(EchoBase):
    """Waits for ever in each handler, and says when it began and when it was cancelled."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def say(self, request: Note, context: Context) -> Note:
        return await self.wait()

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        yield Note(text="first")
        yield await self.wait()

    async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
        yield Note(text="first")
        yield await self.wait()

    async def wait(self) -> Note:
        self.began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError


async def never() -> AsyncIterator[Note]:
    await asyncio.Event().wait()
    yield Note()


async def failing_stream() -> AsyncIterator[Note]:
    yield Note(text="sent")
    raise LookupError("the caller's own")


async def test_a_service_error_arrives_as_it_was_raised(serve: Serve) -> None:
    detail = error_details_pb2.ErrorInfo(reason="TOO_LONG", domain="echo")
    async with serve(Failing(ServiceError(Code.OUT_OF_RANGE, "zu groß", [detail]))) as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(), timeout=10)
    assert (caught.value.code, caught.value.message) == (Code.OUT_OF_RANGE, "zu groß")
    assert caught.value.details == (detail,)
    assert caught.value.path == ("echo",)


@pytest.mark.parametrize("code", [code for code in Code if code != Code.OK])
async def test_every_code_arrives(serve: Serve, code: Code) -> None:
    async with serve(Failing(ServiceError(code, "x"))) as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(), timeout=10)
    assert caught.value.code == code


async def test_an_unknown_exception_is_internal_and_its_text_stays_in_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(Failing(ValueError("the password is 1234"))) as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(), timeout=10)
    assert caught.value.code == Code.INTERNAL
    assert "1234" not in str(caught.value)
    ident = caught.value.message.split()[2].rstrip(";")
    assert ident in caplog.text
    assert "the password is 1234" in caplog.text


async def test_items_before_an_error_arrive_before_it(serve: Serve) -> None:
    texts = []
    async with serve(Failing(ServiceError(Code.DATA_LOSS, "torn"))) as echo:

        async def read() -> None:
            async for note in echo.repeat(Note(), timeout=10):
                texts.append(note.text)

        with pytest.raises(ServiceError, match="torn"):
            await read()
    assert texts == ["before"]


async def test_an_early_error_ends_a_client_stream(serve: Serve) -> None:
    async with serve(Failing(ServiceError(Code.NOT_FOUND, "gone"))) as echo:
        with pytest.raises(ServiceError, match="gone"):
            await echo.join(never(), timeout=10)


async def test_a_method_that_is_not_overridden_is_unimplemented(serve: Serve) -> None:
    async with serve(EchoBase()) as echo:
        with pytest.raises(ServiceError) as unary:
            await echo.say(Note(), timeout=10)
        with pytest.raises(ServiceError) as stream:
            await anext(echo.repeat(Note(), timeout=10))
    assert unary.value.code == stream.value.code == Code.UNIMPLEMENTED


async def test_a_reply_of_the_wrong_type_is_internal(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            return "text"  # type: ignore[return-value]  # the mistake under test

    async with serve(Wrong()) as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note(), timeout=10)
    assert caught.value.code == Code.INTERNAL
    assert "must return Note, not str" in caplog.text


async def test_a_deadline_ends_the_call_on_both_sides(serve: Serve) -> None:
    service, timeout = Waiting(), 0.1
    async with serve(service) as echo:
        while not service.began.is_set():  # a handshake may be part of it, and a machine that is busy needs longer
            with pytest.raises(ServiceError) as caught:
                await echo.say(Note(), timeout=timeout)
            timeout *= 3
        await asyncio.wait_for(service.cancelled.wait(), 10)
    assert caught.value.code == Code.DEADLINE_EXCEEDED


async def test_a_call_without_deadline_gets_the_deployment_s(serve: Serve) -> None:
    service = Waiting()
    async with serve(service, timeout=0.05) as echo:
        with pytest.raises(ServiceError) as caught:
            await echo.say(Note())
        assert service.cancelled.is_set()
    assert caught.value.code == Code.DEADLINE_EXCEEDED


async def test_cancelling_a_call_cancels_its_handler(serve: Serve) -> None:
    service = Waiting()
    async with serve(service) as echo:
        call = asyncio.create_task(echo.say(Note()))
        await service.began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(service.cancelled.wait(), 10)


async def test_leaving_a_stream_early_cancels_its_handler(serve: Serve) -> None:
    service = Waiting()
    async with serve(service) as echo:
        async with echo.repeat(Note()) as replies:
            assert (await anext(replies)).text == "first"
            waiting = asyncio.ensure_future(anext(replies))
            await service.began.wait()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        await asyncio.wait_for(service.cancelled.wait(), 10)


async def test_leaving_a_bidirectional_stream_ends_the_caller_s_stream_too(serve: Serve) -> None:
    ended = asyncio.Event()

    async def mine() -> AsyncIterator[Note]:
        try:
            yield Note()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serve(Echo()) as echo:
        async with echo.chat(mine()) as replies:
            await anext(replies)
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_failure_of_the_caller_s_own_stream_is_the_caller_s(serve: Serve) -> None:
    async with serve(Echo()) as echo:
        with pytest.raises(LookupError, match="the caller's own"):
            await echo.join(failing_stream(), timeout=10)
        with pytest.raises(LookupError, match="the caller's own"):
            _ = [note async for note in echo.chat(failing_stream(), timeout=10)]


async def test_a_handler_s_calls_inherit_its_deadline(serve: Serve) -> None:
    left: list[float | None] = []

    class Leaf(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            left.append(context.remaining())
            return request

    async with serve(Leaf()) as leaf:

        class Front(EchoBase):
            async def say(self, request: Note, context: Context) -> Note:
                left.append(context.remaining())
                return await leaf.say(request)

        async with serve(Front()) as front:
            await front.say(Note(), timeout=20)
    assert left[0] is not None
    assert left[1] is not None
    assert 10 < left[1] <= left[0] <= 20


async def test_an_error_keeps_its_code_and_gathers_its_path(serve: Serve) -> None:
    async with serve(Failing(ServiceError(Code.RESOURCE_EXHAUSTED, "full"))) as leaf:

        class Front(EchoBase):
            async def say(self, request: Note, context: Context) -> Note:
                return await leaf.say(request)

        async with serve(Front()) as front:
            with pytest.raises(ServiceError) as caught:
                await front.say(Note(), timeout=10)
    assert (caught.value.code, caught.value.message) == (Code.RESOURCE_EXHAUSTED, "full")
    assert caught.value.path == ("echo", "echo")


async def many() -> AsyncIterator[Note]:
    for _ in range(50):
        yield Note(text="x" * 100)


@pytest.mark.parametrize("turn", range(5))
async def test_an_error_while_the_caller_still_sends_arrives_as_it_was_raised(serve: Serve, turn: int) -> None:
    class Refuses(EchoBase):
        async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
            raise ServiceError(Code.NOT_FOUND, "gone")

        async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
            raise ServiceError(Code.NOT_FOUND, "gone")
            yield Note()

    async with serve(Refuses()) as echo:
        with pytest.raises(ServiceError, match="NOT_FOUND: gone"):
            await echo.join(many(), timeout=10)
        with pytest.raises(ServiceError, match="NOT_FOUND: gone"):
            await anext(echo.chat(many(), timeout=10))


async def test_a_service_need_not_read_all_that_its_caller_sends(serve: Serve) -> None:
    class Hasty(EchoBase):
        async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
            return await anext(requests)

        async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
            yield await anext(requests)

    async with serve(Hasty()) as echo:
        assert (await echo.join(many(), timeout=10)).text == "x" * 100
        assert len([note async for note in echo.chat(many(), timeout=10)]) == 1


async def test_a_handler_that_awaits_what_was_cancelled_fails_and_its_caller_hears_so(serve: Serve) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        task.cancel()
        await task

    class Careless(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            await cancelled()
            return request

        async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
            yield request
            await cancelled()

    async with serve(Careless()) as echo:
        with pytest.raises(ServiceError, match="INTERNAL"):
            await echo.say(Note())
        replies = echo.repeat(Note())
        await anext(replies)
        with pytest.raises(ServiceError, match="INTERNAL"):
            await anext(replies)
