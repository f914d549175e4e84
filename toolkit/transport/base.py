"""`Transport`: the four call shapes, whatever carries them. Messages above this line are objects, never bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from toolkit.context import MetadataPairs
from toolkit.deadline import Deadline
from toolkit.errors import Code, ServiceError
from toolkit.method import Method
from toolkit.tasks import is_cancelling

Request = TypeVar("Request")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Call:
    """What goes with a request."""

    deadline: Deadline | None = None
    metadata: MetadataPairs = ()


class Transport(Protocol):
    """Carries calls to one deployment. Every failure is raised as `ServiceError`; cancelling the awaiting task, or closing
    the reply stream, cancels the handler on the other side.
    """

    async def unary(self, method: Method[Request, Reply], request: Request, call: Call) -> Reply: ...

    def server_stream(self, method: Method[Request, Reply], request: Request, call: Call) -> AsyncIterator[Reply]: ...

    async def client_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> Reply: ...

    def bidi_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> AsyncIterator[Reply]: ...

    async def close(self) -> None:
        """Cancel what is in flight and let go of the connection."""
        ...


class CallerGoneError(asyncio.CancelledError):
    """The call is cancelled because nobody waits for its end: its caller has left, or the caller's own stream has failed."""


class RequestsFailedError(Exception):
    """The call was given up because the caller's own stream of requests failed: neither the replica nor the way there did."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(failure)
        self.failure = failure


class Feed:
    """A caller's request stream on its way to a handler.

    A failure in it is the caller's own: the handler only sees its call cancelled, and the caller gets the failure back.
    """

    def __init__(self, method: Method[Any, Any], requests: AsyncIterable[Any], convert: Callable[[Any], Any]) -> None:
        self._method = method
        self._items = aiter(requests)
        self._convert = convert
        self._failure: Exception | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            request = await anext(self._items)
            if type(request) is not self._method.request:
                check_type(self._method, request)
            return self._convert(request)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self._failure = error
            raise CallerGoneError from error
        except asyncio.CancelledError as error:
            if is_cancelling():
                raise
            self._failure = ServiceError(Code.CANCELLED, "what the stream of requests waits for was cancelled")
            raise CallerGoneError from error

    def raise_failure(self) -> None:
        """Raise what went wrong in the stream, if anything did."""
        if self._failure is not None:
            raise RequestsFailedError(self._failure)

    async def aclose(self) -> None:
        """Let the caller's stream end, however much of it was read."""
        await close_stream(self._items)


def check_type(method: Method[Any, Any], request: Any) -> None:
    if type(request) is not method.request:
        raise TypeError(f"{method.path} takes {method.request.__name__}, not {type(request).__name__}")


async def close_stream(items: object) -> None:
    """Close an async iterator that can be closed. A stream that is handed to a call belongs to it."""
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()
