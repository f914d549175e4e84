"""`Client`: the base of generated clients. Bound to a deployment, a client is a handle."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from toolkit.context import Context, Metadata, MetadataPairs, ambient, metadata_pairs
from toolkit.deadline import Deadline, earliest
from toolkit.errors import Code, ServiceError
from toolkit.method import Contract, Method
from toolkit.transport.base import Call, RequestsFailedError, Transport, check_type, close_stream

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Stream(AsyncIterator[Reply], Generic[Reply]):
    """The replies of a streaming call: iterate it, or enter it with `async with` to stop early.

    It may be handed to a method that takes a stream: `self.reviewer.refine(self.writer.stream(ask))`. Leaving the `async
    with`, and `aclose()`, cancel the call and close its own stream of requests; so does dropping the stream half read. A
    failure of the call is raised after the items that came before it.
    """

    def __init__(self, replies: AsyncIterator[Reply], name: str, requests: object = None) -> None:
        self._replies = replies
        self._next = replies.__anext__
        self._name = name
        self._requests = requests

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Reply:
        try:
            return await self._next()
        except RequestsFailedError as error:
            raise error.failure from error.failure.__cause__
        except ServiceError as error:
            await close_stream(self._requests)
            raise _came_through(error, self._name) from error.__cause__

    async def aclose(self) -> None:
        """Cancel the call; harmless when it has ended."""
        await close_stream(self._replies)
        await close_stream(self._requests)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Client:
    """Use a generated `XClient`: in a service through `depends(XClient)`, elsewhere through `toolkit.connect`.

    Every method takes `timeout`, seconds that the caller will wait, and `metadata`. Within a handler the time left of the
    call being answered is a limit of its own. A call that fails raises ServiceError.

    A stream of requests is any async iterable. It belongs to the call, which closes it at its end; what it raises comes back
    as it is.
    """

    __contract__: ClassVar[Contract]

    def __init__(self, transport: Transport, name: str = "") -> None:
        self._transport = transport
        self._name = name

    async def _unary(
        self, method: Method[Request, Reply], request: Request, timeout: float | None, metadata: Metadata | None
    ) -> Reply:
        check_type(method, request)
        try:
            return await self._transport.unary(method, request, _call(timeout, metadata))
        except ServiceError as error:
            raise _came_through(error, self._name) from error.__cause__

    def _server_stream(
        self, method: Method[Request, Reply], request: Request, timeout: float | None, metadata: Metadata | None
    ) -> Stream[Reply]:
        check_type(method, request)
        return Stream(self._transport.server_stream(method, request, _call(timeout, metadata)), self._name)

    async def _client_stream(
        self,
        method: Method[Request, Reply],
        requests: AsyncIterable[Request],
        timeout: float | None,
        metadata: Metadata | None,
    ) -> Reply:
        try:
            return await self._transport.client_stream(method, requests, _call(timeout, metadata))
        except RequestsFailedError as error:
            raise error.failure from error.failure.__cause__
        except ServiceError as error:
            raise _came_through(error, self._name) from error.__cause__
        finally:
            await close_stream(requests)

    def _bidi_stream(
        self,
        method: Method[Request, Reply],
        requests: AsyncIterable[Request],
        timeout: float | None,
        metadata: Metadata | None,
    ) -> Stream[Reply]:
        call = _call(timeout, metadata)
        return Stream(self._transport.bidi_stream(method, requests, call), self._name, requests)


def _call(timeout: float | None, metadata: Metadata | None) -> Call:
    """What goes out with a call: the earlier of the caller's own deadline and that of the call being answered."""
    answering = ambient.get()
    deadline = None if answering is None else answering.deadline
    if timeout is not None:
        deadline = earliest(deadline, Deadline.after(timeout))
    if deadline is not None and deadline.is_expired():
        raise ServiceError(Code.DEADLINE_EXCEEDED, "the deadline had passed before the call was sent")
    pairs = () if metadata is None else metadata_pairs(metadata)
    return Call(deadline, pairs if answering is None else _forwarded(answering, pairs))


def _forwarded(answering: Context, own: MetadataPairs) -> MetadataPairs:
    """What the call being answered sends on, but for the keys that this call sets itself."""
    if not own:
        return answering.forwarded
    keys = {key for key, _ in own}
    return (*own, *((key, value) for key, value in answering.forwarded if key not in keys))


def _came_through(error: ServiceError, name: str) -> ServiceError:
    path = (name, *error.path) if name else error.path
    return ServiceError(error.code, error.message, error.details, path=path, retry_after=error.retry_after)
