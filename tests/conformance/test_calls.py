"""The four call shapes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, Image, Note
from tests.conformance.conftest import Serve
from toolkit.context import Context
from toolkit.tensor import Tensor

FULL = Note(
    text="ä\0β", times=-3, number=1 << 60, weight=0.1, urgent=True, blob=b"\xff\0",
    tags=["a", ""], counts={"k": 1, "": -2}, level=0, about=Note(text="inner"),
)  # fmt: skip


async def notes(*texts: str) -> AsyncIterator[Note]:
    for text in texts:
        yield Note(text=text)


async def test_a_unary_call_returns_an_equal_message(serve: Serve) -> None:
    async with serve(Echo()) as echo:
        assert await echo.say(FULL) == FULL
        assert await echo.say(Note()) == Note()


async def test_a_tensor_arrives_as_a_read_only_tensor(serve: Serve) -> None:
    array = np.arange(6000, dtype=np.float32).reshape(2, 3, 1000)
    async with serve(Echo()) as echo:
        reply = await echo.reflect(Image(pixels=Tensor.of(array), caption="c"))
    assert reply.pixels is not None
    np.testing.assert_array_equal(reply.pixels.numpy(), array)
    assert not reply.pixels.numpy().flags.writeable


async def test_a_server_stream_arrives_whole_and_in_order(serve: Serve) -> None:
    async with serve(Echo()) as echo:
        assert [note.number async for note in echo.repeat(Note(times=50))] == list(range(50))
        assert [note async for note in echo.repeat(Note(times=0))] == []


async def test_a_client_stream_arrives_whole_and_in_order(serve: Serve) -> None:
    async with serve(Echo()) as echo:
        assert await echo.join(notes(*"abc")) == Note(text="abc", number=3)
        assert await echo.join(notes()) == Note()


async def test_a_bidirectional_stream_answers_each_item_before_the_next_is_sent(serve: Serve) -> None:
    answered = asyncio.Event()

    async def one_by_one() -> AsyncIterator[Note]:
        yield Note(text="first")
        await answered.wait()
        yield Note(text="second")

    texts = []
    async with serve(Echo()) as echo:
        async for note in echo.chat(one_by_one(), timeout=10):
            texts.append(note.text)
            answered.set()
    assert texts == ["first", "second"]


async def test_a_reply_stream_is_a_request_stream(serve: Serve) -> None:
    async with serve(Echo()) as echo:
        piped = echo.chat(echo.repeat(Note(times=3)))
        assert [note.number async for note in piped] == [0, 1, 2]


async def test_neither_side_sees_what_the_other_changes_later(serve: Serve) -> None:
    kept: list[Note] = []

    class Keeps(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            request.tags.append("by the service")
            kept.append(request)
            return request

    async with serve(Keeps()) as echo:
        sent = Note(tags=["mine"], about=Note())
        reply = await echo.say(sent)
        reply.tags.append("by the caller")
    assert sent.tags == ["mine"]
    assert kept[0].tags == ["mine", "by the service"]
    assert kept[0].about is not sent.about


async def test_many_calls_share_a_handle(serve: Serve) -> None:
    async with serve(Echo()) as echo:
        replies = await asyncio.gather(*(echo.say(Note(number=n)) for n in range(100)))
    assert [reply.number for reply in replies] == list(range(100))


async def test_metadata_reaches_the_handler(serve: Serve) -> None:
    seen: list[object] = []

    class Reads(EchoBase):
        async def say(self, request: Note, context: Context) -> Note:
            seen.extend([context.first("x-tenant"), context.first("x-raw-bin"), context.first("absent")])
            return request

    async with serve(Reads()) as echo:
        await echo.say(Note(), metadata={"X-Tenant": "acme", "x-raw-bin": b"\0\xff"})
    assert seen == ["acme", b"\0\xff", None]


async def test_a_wrong_message_is_refused_before_it_is_sent(serve: Serve) -> None:
    async with serve(Echo()) as echo:
        with pytest.raises(TypeError, match="takes Note, not Image"):
            await echo.say(Image())  # type: ignore[arg-type]  # the mistake under test
