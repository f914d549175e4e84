"""`connect()`: a typed client from outside of a graph, in a script, a notebook or a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from toolkit.client import Client
from toolkit.limits import DEFAULT, MessageLimits
from toolkit.transport.grpc import GrpcTransport

C = TypeVar("C", bound=Client)


@asynccontextmanager
async def connect(client: type[C], address: str, *, max_message_bytes: int = DEFAULT) -> AsyncIterator[C]:
    """A client of what answers at `address` (`HOST:PORT` or `unix:/path`), closed with the block:

    `async with connect(ScoringClient, "127.0.0.1:50051") as scoring: await scoring.score(pair, timeout=5)`
    """
    limits = MessageLimits(max_message_bytes)
    transport = GrpcTransport((address,), limits=limits, contract=client.__contract__)
    try:
        yield client(transport)
    finally:
        await transport.close()
