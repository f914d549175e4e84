"""`Transport`: the four call shapes, whatever carries them. Messages above this line are objects, never bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from toolkit.context import MetadataPairs
from toolkit.deadline import Deadline
from toolkit.method import Method

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


class Feed:
    """A caller's request stream on its way to a handler.

    A failure in it is the caller's own: the handler only sees its call cancelled, and the caller gets the failure back.
    """

    def __init__(self, requests: AsyncIterable[Any], convert: Callable[[Any], Any]) -> None:
        self._items = aiter(requests)
        self._convert = convert
        self._failure: Exception | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return self._convert(await anext(self._items))
        except StopAsyncIteration:
            raise
        except Exception as error:
            self._failure = error
            raise CallerGoneError from error

    def raise_failure(self) -> None:
        """Raise what went wrong in the stream, if anything did."""
        if self._failure is not None:
            raise self._failure

    async def aclose(self) -> None:
        """Let the caller's stream end, however much of it was read."""
        if isinstance(self._items, AsyncGenerator):
            await self._items.aclose()
