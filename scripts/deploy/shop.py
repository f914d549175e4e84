"""What is deployed: an entry in front of some leaves, which say who they are. Copied into a project of its own."""

from __future__ import annotations

import asyncio
import os
import socket

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Note
from toolkit.context import Context
from toolkit.service import depends

VERSION = 1


class Leaf(EchoBase):
    async def say(self, request: Note, context: Context) -> Note:
        await asyncio.sleep(request.weight)
        return Note(text=socket.gethostname(), number=VERSION, tags=[os.environ["ODD"]])


class Entry(EchoBase):
    leaf = depends(EchoClient)

    async def say(self, request: Note, context: Context) -> Note:
        return await self.leaf.say(request)
