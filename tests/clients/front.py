"""The entry of the graph that clients in all languages call: it passes calls on, and refuses one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Image, Line, Note
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends


class Front(EchoBase):
    echo = depends(EchoClient)

    async def say(self, request: Note, context: Context) -> Note:
        if not request.text:
            raise ServiceError(Code.FAILED_PRECONDITION, "there is nothing to say")
        return await self.echo.say(request)

    async def reflect(self, request: Image, context: Context) -> Image:
        return await self.echo.reflect(request)

    async def total(self, request: Image, context: Context) -> Line:
        return await self.echo.total(request)

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        async for note in self.echo.repeat(request):
            yield note
