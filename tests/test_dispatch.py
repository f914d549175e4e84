"""What holds for every call whatever carried it: its limit, its failures, its end. Reached directly, without a transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, Line, Note
from toolkit.context import Context, ambient
from toolkit.deadline import Deadline
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, internal
from toolkit.method import Method

METHODS: dict[str, Method[Any, Any]] = {method.name: method for method in Echo.__contract__.methods}
PING, REPEAT = METHODS["Ping"], METHODS["Repeat"]


def context(method: Method[Any, Any] = PING, timeout: float | None = None) -> Context:
    return Context(method, deadline=None if timeout is None else Deadline.after(timeout))


async def reply(service: EchoBase, request: Any, *, timeout: float = 30, of: Context | None = None) -> Any:
    return await Dispatcher(service, timeout=timeout).reply(PING, request, of or context())


class Does(EchoBase):
    """`ping` and `repeat` do what they are given."""

    def __init__(self, what: Any) -> None:
        self.what = what

    async def ping(self, request: Line, context: Context) -> Line:
        found = self.what(context)
        return await found if asyncio.iscoroutine(found) else found  # type: ignore[no-any-return]  # any: that is tested

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        yield request
        await self.what(context)


def raising(error: BaseException) -> Any:
    async def fail(context: Context) -> None:
        raise error

    return fail


async def forever(context: Context) -> None:
    await asyncio.Event().wait()


async def test_a_handler_s_reply_comes_back() -> None:
    assert await reply(Echo(), Line(text="t")) == Line(text="t")


async def test_a_service_error_leaves_as_it_is() -> None:
    mine = ServiceError(Code.NOT_FOUND, "gone")
    with pytest.raises(ServiceError) as caught:
        await reply(Does(raising(mine)), Line())
    assert caught.value is mine


@pytest.mark.parametrize(
    "error", [ValueError("secret"), TimeoutError("of its own"), StopAsyncIteration(), ExceptionGroup("g", [OSError()])]
)
async def test_anything_else_is_internal_with_an_id_under_which_the_log_has_it(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ServiceError) as caught:
        await reply(Does(raising(error)), Line())
    ident = caught.value.message.split()[2].rstrip(";")
    assert caught.value.code == Code.INTERNAL
    assert "secret" not in caught.value.message
    assert f"internal error {ident}" in caplog.text
    assert type(error).__name__ in caplog.text


async def test_each_internal_error_has_an_id_of_its_own() -> None:
    assert internal(ValueError()).message != internal(ValueError()).message


@pytest.mark.parametrize("made", ["text", None, Note(), b"raw"])
async def test_a_reply_of_another_type_is_internal(made: object, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServiceError) as caught:
        await reply(Does(lambda context: made), Line())
    assert caught.value.code == Code.INTERNAL
    assert f"/services.echo.v1.Echo/Ping must return Line, not {type(made).__name__}" in caplog.text


async def test_a_handler_that_outlasts_the_deadline_is_ended() -> None:
    with pytest.raises(ServiceError) as caught:
        await reply(Does(forever), Line(), of=context(timeout=0.01))
    assert (caught.value.code, caught.value.message) == (
        Code.DEADLINE_EXCEEDED,
        "/services.echo.v1.Echo/Ping took longer than the deadline allows",
    )


async def test_without_a_deadline_the_deployment_s_timeout_counts() -> None:
    with pytest.raises(ServiceError) as caught:
        await reply(Does(forever), Line(), timeout=0.01)
    assert caught.value.code == Code.DEADLINE_EXCEEDED


def test_a_deadline_is_never_told_as_an_internal_error_whatever_the_event_loop() -> None:
    """uvloop's timers are early by up to two milliseconds."""

    async def code(timeout: float) -> Code:
        with pytest.raises(ServiceError) as caught:
            await asyncio.create_task(reply(Does(forever), Line(), of=context(timeout=timeout)))
        return caught.value.code

    async def codes() -> set[Code]:
        return set(await asyncio.gather(*(code(0.01 + n * 0.00037) for n in range(100))))

    assert uvloop.run(codes()) == {Code.DEADLINE_EXCEEDED}


async def test_a_call_whose_deadline_has_passed_does_not_reach_its_handler() -> None:
    reached: list[Context] = []
    dispatcher = Dispatcher(Does(reached.append), timeout=30)
    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED: the deadline passed before the call was handled"):
        await dispatcher.reply(PING, Line(), context(timeout=-1.0))
    assert (reached, dispatcher.in_flight, dispatcher.expired) == ([], 0, 1)


async def test_a_handler_knows_what_is_left_and_which_call_it_answers() -> None:
    seen: list[Any] = []

    async def look(context: Context) -> Line:
        seen.extend([context.remaining(), ambient.get() is context, context.method])
        return Line()

    await asyncio.create_task(reply(Does(look), Line(), timeout=20))
    assert seen[0] is not None
    assert 0 < seen[0] <= 20
    assert seen[1:] == [True, PING]
    assert ambient.get() is None, "only in the call's own task"


async def test_a_cancelled_call_is_cancelled_and_no_error() -> None:
    call = asyncio.create_task(reply(Does(forever), Line()))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


# Streams


async def items(service: EchoBase, *, timeout: float = 30) -> AsyncIterator[Any]:
    found: list[Any] = []

    async def send(item: Any) -> None:
        found.append(item)

    try:
        await Dispatcher(service, timeout=timeout).stream(REPEAT, Note(text="t", times=3), context(REPEAT), send)
    finally:
        for item in found:
            yield item


async def test_a_stream_s_items_come_back() -> None:
    assert [item.number async for item in items(Echo())] == [0, 1, 2]


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (raising(ServiceError(Code.DATA_LOSS, "torn")), Code.DATA_LOSS),
        (raising(ValueError()), Code.INTERNAL),
        (forever, Code.DEADLINE_EXCEEDED),
    ],
)
async def test_what_a_stream_fails_with_comes_after_its_items(what: Any, code: Code) -> None:
    stream = items(Does(what), timeout=0.05)
    assert await anext(stream) == Note(text="t", times=3)
    with pytest.raises(ServiceError) as caught:
        await anext(stream)
    assert caught.value.code == code


async def test_an_item_of_another_type_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(EchoBase):
        async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
            yield Line()  # type: ignore[misc]  # the mistake under test

    with pytest.raises(ServiceError):
        await anext(items(Wrong()))
    assert "Repeat must return Note, not Line" in caplog.text


async def test_a_stream_handler_that_is_no_generator_is_internal(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(EchoBase):
        def repeat(self, request: Note, context: Context) -> Any:
            return [request]

    with pytest.raises(ServiceError) as caught:
        await anext(items(Wrong()))
    assert caught.value.code == Code.INTERNAL
    assert "got list" in caplog.text


async def test_cancelling_a_stream_closes_its_handler() -> None:
    closed: list[str] = []

    class Watched(EchoBase):
        async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
            try:
                while True:
                    yield request
            finally:
                closed.append("closed")

    async def send(item: Any) -> None:
        sent.set()
        await asyncio.Event().wait()

    dispatcher, sent = Dispatcher(Watched(), timeout=30), asyncio.Event()
    stream = asyncio.create_task(dispatcher.stream(REPEAT, Note(), context(REPEAT), send))
    await sent.wait()
    assert dispatcher.in_flight == 1
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert (closed, dispatcher.in_flight) == (["closed"], 0)


async def test_a_deadline_ends_a_stream_that_nobody_reads() -> None:
    async def send(item: Any) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ServiceError, match="DEADLINE_EXCEEDED"):
        await Dispatcher(Echo(), timeout=0.05).stream(REPEAT, Note(times=3), context(REPEAT), send)


# What is in flight


async def test_calls_in_flight_are_counted_and_waited_for() -> None:
    release = asyncio.Event()

    async def wait(context: Context) -> Line:
        await release.wait()
        return Line()

    dispatcher = Dispatcher(Does(wait), timeout=30)
    assert await dispatcher.wait_idle(0)
    calls = [asyncio.create_task(dispatcher.reply(PING, Line(), context())) for _ in range(3)]
    await asyncio.sleep(0)
    assert dispatcher.in_flight == 3
    assert not await dispatcher.wait_idle(0.001)
    idle = asyncio.create_task(dispatcher.wait_idle(30))
    release.set()
    assert await idle
    assert dispatcher.in_flight == 0
    await asyncio.wait(calls)


async def test_what_comes_in_the_moment_that_a_call_ends_is_waited_for_too() -> None:
    """Work that a handler leaves behind, for example, as the last that it does."""
    called, release = asyncio.Event(), asyncio.Event()

    async def leave_behind(context: Context) -> Line:
        await called.wait()
        context.detached(release.wait())
        return Line()

    dispatcher = Dispatcher(Does(leave_behind), timeout=30)
    call = asyncio.create_task(dispatcher.reply(PING, Line(), context()))
    idle = asyncio.create_task(dispatcher.wait_idle(30))
    await asyncio.sleep(0)
    called.set()
    await call
    await asyncio.wait([idle], timeout=0.01)
    assert not idle.done()
    release.set()
    assert await idle


async def test_work_that_a_handler_leaves_behind_is_in_flight_at_once_and_until_it_ends() -> None:
    release = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    def leave_behind(context: Context) -> Line:
        tasks.append(context.detached(release.wait()))
        return Line()

    dispatcher = Dispatcher(Does(leave_behind), timeout=30)
    await dispatcher.reply(PING, Line(), context())
    assert dispatcher.in_flight == 1
    release.set()
    assert await dispatcher.wait_idle(30)
    await dispatcher.reply(PING, Line(), context())
    tasks[1].cancel()
    assert await dispatcher.wait_idle(30)


@pytest.mark.parametrize(
    "what", [raising(ValueError()), raising(ServiceError(Code.NOT_FOUND, "")), lambda context: "wrong type"]
)
async def test_a_call_that_failed_is_no_longer_in_flight(what: Any) -> None:
    dispatcher = Dispatcher(Does(what), timeout=30)
    with pytest.raises(ServiceError):
        await dispatcher.reply(PING, Line(), context())
    assert dispatcher.in_flight == 0
