"""Two deployments in one process: the request object is handed over, and the handler runs in a task of its own.

Messages are isolated by a shallow copy, so that neither side sees the other's later changes; tensors are immutable and
shared. With `strict`, every message goes through its encoding instead, so that what works here works on a wire.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, Protocol, Self, TypeVar

from toolkit import codec
from toolkit.context import Context
from toolkit.dispatch import Send
from toolkit.errors import ServiceError, internal
from toolkit.message import copy_message
from toolkit.method import Method
from toolkit.tasks import wait_closed
from toolkit.transport.base import Call, CallerGoneError, Feed

Request = TypeVar("Request")
Reply = TypeVar("Reply")
AHEAD: Final = 1
"""Items of a stream that wait to be read, at most."""
PEER: Final = "local"


class Answering(Protocol):
    """What it needs of a dispatcher."""

    async def reply(self, method: Method[Any, Any], request: Any, context: Context) -> Any: ...

    async def stream(self, method: Method[Any, Any], request: Any, context: Context, send: Send) -> None: ...


class LocalTransport:
    """Calls a dispatcher in this process."""

    def __init__(self, dispatcher: Answering, *, strict: bool = False) -> None:
        self._dispatcher = dispatcher
        self._hand_over: Callable[[Any], Any] = _through_codec if strict else copy_message
        self._tasks: set[asyncio.Task[Any]] = set()

    async def unary(self, method: Method[Request, Reply], request: Request, call: Call) -> Reply:
        reply: Reply = await self._start(self._reply(method, self._hand_over(request), call))
        return reply

    async def client_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> Reply:
        async with self._fed(method, requests) as pipe:
            reply: Reply = await self._start(self._reply(method, pipe, call))
            return reply

    def server_stream(self, method: Method[Request, Reply], request: Request, call: Call) -> AsyncIterator[Reply]:
        return self._stream(method, self._hand_over(request), call)

    async def bidi_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> AsyncIterator[Reply]:
        async with (
            self._fed(method, requests) as pipe,
            aclosing(self._stream(method, pipe, call)) as replies,
        ):
            async for reply in replies:
                yield reply

    async def close(self) -> None:
        for task in list(self._tasks):
            await wait_closed(task)

    async def _reply(self, method: Method[Request, Reply], request: Any, call: Call) -> Reply:
        reply = await self._dispatcher.reply(method, request, _context(method, call))
        return self._sent_back(reply)  # type: ignore[no-any-return]  # the same type comes back

    async def _stream(self, method: Method[Request, Reply], request: Any, call: Call) -> AsyncGenerator[Reply, None]:
        pipe = _Pipe()
        task = self._start(self._answer(method, request, call, pipe))
        task.add_done_callback(lambda task: pipe.end(asyncio.CancelledError()))  # where it never took its first step
        try:
            async for reply in pipe:
                yield reply
        finally:
            await wait_closed(task)

    async def _answer(self, method: Method[Request, Reply], request: Any, call: Call, pipe: _Pipe) -> None:
        """Run a streaming handler; the last that comes through the pipe says how it ended."""

        def send(reply: Any) -> Awaitable[None]:
            return pipe.put(self._sent_back(reply))

        try:
            await self._dispatcher.stream(method, request, _context(method, call), send)
        except (ServiceError, asyncio.CancelledError) as error:
            pipe.end(error)
        else:
            pipe.end()

    @asynccontextmanager
    async def _fed(self, method: Method[Any, Any], requests: AsyncIterable[Any]) -> AsyncIterator[_Pipe]:
        """The caller's stream, run on the caller's side: in its context, and ended with the block."""
        feed = Feed(method, requests, self._hand_over)
        pipe = _Pipe()
        feeding = asyncio.create_task(_fill(pipe, feed))
        try:
            yield pipe
        except (ServiceError, asyncio.CancelledError):
            feed.raise_failure()
            raise
        finally:
            await wait_closed(feeding)
            await feed.aclose()

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


class _Pipe:
    """A stream from one task to another."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._waiting: asyncio.Future[None] | None = None
        """For an item, or for room."""

    async def put(self, item: Any) -> None:
        """Return when another may be put."""
        self._items.append(item)
        self._wake()
        while len(self._items) >= AHEAD:
            await self._wait()

    def end(self, how: BaseException | None = None) -> None:
        """No item comes any more, because of `how` if it is not the end of the stream. The first word counts."""
        if self._end is None:
            self._end = StopAsyncIteration() if how is None else how
            self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            if self._end is not None:
                raise self._end
            await self._wait()
        item = self._items.popleft()
        self._wake()
        return item

    async def _wait(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        await self._waiting

    def _wake(self) -> None:
        """Only one side ever waits: for an item where there is none, or for room where there is no more."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


async def _fill(pipe: _Pipe, feed: Feed) -> None:
    try:
        async for request in feed:
            await pipe.put(request)
    except CallerGoneError as error:
        pipe.end(error)
    else:
        pipe.end()


def _context(method: Method[Any, Any], call: Call) -> Context:
    return Context(method, deadline=call.deadline, sent=call.metadata, peer=PEER)


def _through_codec(message: Any) -> Any:
    return codec.decode(type(message), codec.encode(message))
