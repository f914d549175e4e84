"""What the cases call: it waits as for an accelerator, and keeps a record of what happened to each call.

`say` is the work; `Note.number` names the call, `Note.weight` are the seconds that it takes. `ping` tells the record.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass, field

from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Image, Line, Note
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends

SLICE = 0.005
"""Seconds of work after which it looks at the clock."""


@dataclass(slots=True)
class Record:
    """What one replica has seen. Points in time are those of the monotonic clock, which all processes share."""

    pid: int = field(default_factory=os.getpid)
    attempts: int = 0
    running: int = 0
    tasks: int = 0
    """Tasks of the event loop, when the record was asked for."""
    left: dict[int, float] = field(default_factory=dict)
    """Call → seconds to its deadline when it came in."""
    worked_at: dict[int, float] = field(default_factory=dict)
    """Call → when it was last worked at."""
    cancelled_at: dict[int, float] = field(default_factory=dict)


class Recording(EchoBase):
    def __init__(self) -> None:
        self.record = Record()

    async def say(self, request: Note, context: Context) -> Note:
        record, number = self.record, request.number
        record.attempts += 1
        record.running += 1
        remaining = context.remaining()
        if number and remaining is not None:
            record.left[number] = remaining
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            record.cancelled_at[number] = time.monotonic()
            raise
        finally:
            record.running -= 1

    async def answer(self, request: Note) -> Note:
        raise NotImplementedError

    async def ping(self, request: Line, context: Context) -> Line:
        self.record.tasks = len(asyncio.all_tasks())
        return Line(text=json.dumps(asdict(self.record)))


class Leaf(Recording):
    def __init__(self, seconds: float = 0.02) -> None:
        super().__init__()
        self.seconds = seconds

    async def answer(self, request: Note) -> Note:
        if not request.number:
            await asyncio.sleep(self.seconds)
            return request
        until = time.monotonic() + (request.weight or self.seconds)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, SLICE))
            self.record.worked_at[request.number] = time.monotonic()
        return request


class Failing(Recording):
    async def answer(self, request: Note) -> Note:
        raise ServiceError(Code.UNAVAILABLE, "as always")


class Hop(Recording):
    next = depends(EchoClient)

    async def answer(self, request: Note) -> Note:
        return await self.next.say(request)


class Spreads(EchoBase):
    """Starts something in a session of its own."""

    def __init__(self) -> None:
        self.child = subprocess.Popen(["sleep", "600"], start_new_session=True)


class Upload(EchoBase):
    async def total(self, request: Image, context: Context) -> Line:
        return Line()
