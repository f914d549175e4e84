"""Calls from outside: ours, those of the stock client, and a load that goes on while something is broken."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio

from scripts.chaos_cases.load import Load, Sample
from scripts.deploy.commands import StepError, run
from scripts.deploy.project import ODD, PORT
from services.echo.v1.echo_toolkit import EchoClient, Note
from toolkit.connect import connect
from toolkit.errors import ServiceError

ENTRY = f"127.0.0.1:{PORT}"
RATE = 50.0
WORK = 0.02
"""Seconds that a leaf takes for a call."""
TIMEOUT = 10.0
SERVING = b"\x08\x01"


@dataclass
class Caller:
    """Who has answered, and with which version of the code."""

    client: EchoClient
    leaves: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    """In loads that have ended."""
    calls: int = 0
    worst: float = 0.0
    said: list[str] = field(default_factory=list)

    async def say(self) -> None:
        reply = await self.client.say(Note(weight=WORK), timeout=TIMEOUT)
        self.leaves[reply.text] += 1
        self.versions[reply.number] += 1

    @asynccontextmanager
    async def load(self) -> AsyncIterator[None]:
        """Idempotent calls at a steady rate for as long as the block runs."""
        load = Load(self.say, RATE)
        try:
            yield
        finally:
            self._add(await load.stop())

    def _add(self, samples: Sequence[Sample]) -> None:
        self.calls = len(samples)
        self.failed = sum(not each.is_ok for each in samples)
        self.worst = max((each.latency for each in samples), default=0.0)
        for message in sorted({each.message for each in samples if not each.is_ok}):
            sys.stderr.write(f"         failed: {message}\n")

    async def leaves_of(self, calls: int) -> Counter[str]:
        """Who answers these."""
        self.leaves.clear()
        for _ in range(calls):
            await self.say()
        return self.leaves


@asynccontextmanager
async def caller(address: str = ENTRY) -> AsyncIterator[Caller]:
    async with connect(EchoClient, address) as client:
        yield Caller(client)


async def outsiders(address: str = ENTRY) -> int:
    """How many of three fail: `toolkit call`, the stock client, and its question for health."""
    found = await asyncio.gather(_toolkit_call(address), _stock(address, "services.echo.v1.Echo/Say"), health(address))
    return found.count(False)


async def _toolkit_call(address: str) -> bool:
    try:
        said = await run(sys.executable, "-m", "toolkit", "call", "Say", "{}", "--target", address, timeout=30)
    except StepError as failure:
        sys.stderr.write(f"         failed: {failure}\n")
        return False
    reply = json.loads(said)
    return (reply["number"], reply["tags"]) == ("1", [ODD])


async def health(address: str) -> bool:
    return await _stock(address, "grpc.health.v1.Health/Check", SERVING)


async def _stock(address: str, method: str, expected: bytes = b"") -> bool:
    """Whether plain gRPC gets an answer to an empty message."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{method}")
        try:
            reply = await call(b"", timeout=TIMEOUT, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            sys.stderr.write(f"         failed: {method}: {error.details()}\n")
            return False
        return bool(reply) and (not expected or reply == expected)


async def is_answered(caller: Caller) -> bool:
    try:
        await caller.say()
    except ServiceError:
        return False
    return True
