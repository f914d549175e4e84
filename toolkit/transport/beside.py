"""What is said of a stream of requests over gRPC in calls beside it, because the stream itself cannot carry it. A server of
somebody else's does not know these calls; then gRPC's own ways have to do.

How far the handler has read, so that a caller is not too far ahead. For replies HTTP/2's flow control sees to that. For requests
it cannot: a server has one window for all that it receives, and one that is right for tokens would slow down every large request.

That the caller's own stream has failed. All that gRPC lets a caller do is to cancel its call, and with it what the handler is
yet to read, and the replies that are on their way.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import UInt64Value

from toolkit.context import MetadataPairs
from toolkit.tasks import wait_closed

SERVICE: Final = "toolkit.v1.Streams"
FOLLOW: Final = "Follow"
FAIL: Final = "Fail"
STREAM: Final = "toolkit-stream"
"""Metadata of the stream, and of the calls beside it: a name that nobody can guess, and after how many bytes to tell."""
FAIL_WITHIN: Final = 1.0
"""Seconds for the other side to hear of a failure."""
SMALLEST: Final = 64
"""Bytes that an item counts at least, so that there is an end to small ones too."""
LONGEST_STEP: Final = 1 << 24


class Lead:
    """The caller's side of one stream: sends no more than `ahead` bytes that have not been read, but two items of any size."""

    def __init__(self, channel: grpc.aio.Channel, ahead: int) -> None:
        self._channel = channel
        self._step = _within(ahead // 2)
        self._left = 2 * self._step
        """What may still be sent."""
        self._read = 0
        self._following: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.metadata: MetadataPairs = ((STREAM, f"{secrets.token_hex(16)}/{self._step}"),)
        """Goes with the call whose stream it is."""

    def send_nowait(self, size: int) -> bool:
        """Count an item; whether it may be sent at once. Else `wait` comes first."""
        self._left -= _counted(size, self._step)
        return self._left >= 0

    async def wait(self) -> None:
        """Until the item that was counted last may be sent."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        while self._left < 0 and not self._following.done():
            self._changed.clear()
            await self._changed.wait()

    async def fail(self) -> bool:
        """Say that the end of the stream, which comes next, is a failure. Whether the other side has understood."""
        fail: Any = self._channel.unary_unary(f"/{SERVICE}/{FAIL}")
        try:
            await fail(b"", metadata=self.metadata, timeout=FAIL_WITHIN)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def close(self) -> None:
        if self._following is not None:
            await wait_closed(self._following)

    async def _follow(self) -> None:
        """Hear how far the other side has read; its end, however it comes, is the end of the limit."""
        try:
            follow: Any = self._channel.unary_stream(f"/{SERVICE}/{FOLLOW}")
            async for data in follow(b"", metadata=self.metadata):
                read = UInt64Value.FromString(data).value
                self._left += read - self._read
                self._read = read
                self._changed.set()
        except (grpc.aio.AioRpcError, DecodeError):
            pass
        finally:
            asyncio.get_running_loop().call_soon(self._changed.set)  # when the task is done


class Reading:
    """The handler's side of one stream."""

    __slots__ = ("_read", "_step", "_told", "_waiting", "has_ended", "has_failed", "is_followed")

    def __init__(self, step: int) -> None:
        self._step = step
        self._read = 0
        self._told = 0
        self._waiting: asyncio.Future[None] | None = None
        self.has_ended = False
        self.has_failed = False
        """What its caller sends has failed after the last item."""
        self.is_followed = False

    def add(self, size: int) -> None:
        """An item was read."""
        self._read += _counted(size, self._step)
        if self._read - self._told >= self._step:
            self._wake()

    def end(self) -> None:
        self.has_ended = True
        self._wake()

    async def news(self) -> int:
        """What was read so far, once that is worth telling."""
        while self._read - self._told < self._step and not self.has_ended:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        self._told = self._read
        return self._read

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


class Readings:
    """The streams that a server is reading."""

    def __init__(self) -> None:
        self._found: dict[str, Reading] = {}
        methods: dict[str, Any] = {
            FOLLOW: grpc.unary_stream_rpc_method_handler(self._tell),
            FAIL: grpc.unary_unary_rpc_method_handler(self._fail),
        }
        self.handler = grpc.method_handlers_generic_handler(SERVICE, methods)

    @contextmanager
    def of(self, call: Any) -> Iterator[Reading]:
        """The reading of a call's stream, of which may be spoken within the block."""
        name = _named(call)
        reading = Reading(_step(name))
        if name:
            self._found[name] = reading
        try:
            yield reading
        finally:
            reading.end()
            self._found.pop(name, None)

    async def _tell(self, data: bytes, call: Any) -> None:
        reading = self._found.get(_named(call))
        if reading is None or reading.is_followed:
            return
        reading.is_followed = True
        with suppress(grpc.aio.BaseError):  # nobody hears it any more
            while True:
                read = await reading.news()
                if reading.has_ended:
                    return
                await call.write(UInt64Value(value=read).SerializeToString())

    async def _fail(self, data: bytes, call: Any) -> bytes:
        reading = self._found.get(_named(call))
        if reading is None:
            call.set_code(grpc.StatusCode.NOT_FOUND)
        else:
            reading.has_failed = True
        return b""


def _counted(size: int, step: int) -> int:
    return SMALLEST if size < SMALLEST else min(size, step)


def _named(call: Any) -> str:
    return next((str(value) for key, value in call.invocation_metadata() if key == STREAM), "")


def _step(name: str) -> int:
    step = name.rpartition("/")[2]
    return _within(int(step)) if step.isascii() and step.isdigit() else LONGEST_STEP


def _within(step: int) -> int:
    """Both sides must count alike."""
    return max(min(step, LONGEST_STEP), SMALLEST)
