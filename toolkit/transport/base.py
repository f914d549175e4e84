"""`Transport`: the four call shapes, whatever carries them. Messages above this line are objects, never bytes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

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
