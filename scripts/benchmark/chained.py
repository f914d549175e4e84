"""A service that makes a stream, and one that passes on what another makes, for chains of services."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.context import Context
from toolkit.service import depends


class Source(Echo):
    """Does as much for an item as the bare server does."""

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        for number in range(request.times):
            yield Note(text=request.text, number=number)


class Chained(EchoBase):
    source = depends(EchoClient)

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        async for note in self.source.repeat(request):
            yield note

    async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
        async for note in self.source.chat(requests):
            yield note
