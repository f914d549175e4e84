"""Two deployments in one process: the request object is handed over, and the handler runs in a task of its own.

Messages are isolated by a shallow copy, so that neither side sees the other's later changes; tensors are immutable and
shared. With `strict`, every message goes through its encoding instead, so that what works here works on a wire.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar

from toolkit import codec
from toolkit.context import Context, MetadataPairs
from toolkit.dispatch import Dispatcher
from toolkit.errors import ServiceError, internal
from toolkit.message import copy_message
from toolkit.method import Method
from toolkit.tasks import wait_closed
from toolkit.transport.base import Call, Feed

Request = TypeVar("Request")
Reply = TypeVar("Reply")
BUFFERED_REPLIES: Final = 1
"""Replies that a streaming handler may run ahead of its reader."""
_END: Final = object()


class LocalTransport:
    """Calls a dispatcher in this process."""

    def __init__(self, dispatcher: Dispatcher, *, strict: bool = False) -> None:
        self._dispatcher = dispatcher
        self._hand_over: Callable[[Any], Any] = _through_codec if strict else copy_message
        self._tasks: set[asyncio.Task[Any]] = set()

    async def unary(self, method: Method[Request, Reply], request: Request, call: Call) -> Reply:
        reply: Reply = await self._start(self._reply(method, self._hand_over(request), call))
        return reply

    async def client_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> Reply:
        feed = Feed(requests, self._hand_over)
        try:
            reply: Reply = await self._start(self._reply(method, feed, call))
            return reply
        except (ServiceError, asyncio.CancelledError):
            feed.raise_failure()
            raise
        finally:
            await feed.aclose()

    def server_stream(self, method: Method[Request, Reply], request: Request, call: Call) -> AsyncIterator[Reply]:
        return self._stream(method, self._hand_over(request), call)

    async def bidi_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> AsyncIterator[Reply]:
        feed = Feed(requests, self._hand_over)
        try:
            async with aclosing(self._stream(method, feed, call)) as replies:
                async for reply in replies:
                    yield reply
        except (ServiceError, asyncio.CancelledError):
            feed.raise_failure()
            raise
        finally:
            await feed.aclose()

    async def close(self) -> None:
        for task in list(self._tasks):
            await wait_closed(task)

    async def _reply(self, method: Method[Request, Reply], request: Any, call: Call) -> Reply:
        reply = await self._dispatcher.reply(method, request, _context(method, call))
        return self._sent_back(reply)  # type: ignore[no-any-return]  # the same type comes back

    async def _stream(self, method: Method[Request, Reply], request: Any, call: Call) -> AsyncGenerator[Reply, None]:
        queue: asyncio.Queue[Any] = asyncio.Queue(BUFFERED_REPLIES)
        task = self._start(self._pump(method, request, call, queue))
        try:
            while (item := await queue.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            await wait_closed(task)

    async def _pump(self, method: Method[Request, Reply], request: Any, call: Call, queue: asyncio.Queue[Any]) -> None:
        """Move replies to the queue; its last item says how the stream ended."""
        try:
            await self._dispatcher.stream(
                method, request, _context(method, call), lambda reply: queue.put(self._sent_back(reply))
            )
            await queue.put(_END)
        except (ServiceError, asyncio.CancelledError) as error:
            await queue.put(error)

    def _sent_back(self, reply: Any) -> Any:
        try:
            return self._hand_over(reply)
        except codec.EncodeError as error:
            raise internal(error) from error

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that inherits nothing of the caller but what the call itself carries, as on the far side of a wire."""
        task = asyncio.get_running_loop().create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Here:
    """The origin of a call within this process."""

    __slots__ = ("_metadata",)

    def __init__(self, metadata: MetadataPairs) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> MetadataPairs:
        return self._metadata

    def peer(self) -> str:
        return "local"


def _context(method: Method[Any, Any], call: Call) -> Context:
    return Context(method, deadline=call.deadline, origin=_Here(call.metadata))


def _through_codec(message: Any) -> Any:
    return codec.decode(type(message), codec.encode(message))
