"""The plumbing and nothing else: what tests and measurements call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from services.echo.v1.echo_toolkit import EchoBase, Image, Line, Note
from toolkit.context import Context


class Echo(EchoBase):
    async def ping(self, request: Line, context: Context) -> Line:
        return request

    async def say(self, request: Note, context: Context) -> Note:
        return request

    async def reflect(self, request: Image, context: Context) -> Image:
        return request

    async def total(self, request: Image, context: Context) -> Line:
        return Line(number=0 if request.pixels is None else int(request.pixels.numpy().sum()))

    async def repeat(self, request: Note, context: Context) -> AsyncIterator[Note]:
        for number in range(request.times):
            yield replace(request, number=number)

    async def join(self, requests: AsyncIterator[Note], context: Context) -> Note:
        texts = [note.text async for note in requests]
        return Note(text="".join(texts), number=len(texts))

    async def chat(self, requests: AsyncIterator[Note], context: Context) -> AsyncIterator[Note]:
        async for note in requests:
            yield note
