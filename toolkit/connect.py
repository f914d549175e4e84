"""`connect()`: a typed client from outside of a graph, in a script, a notebook or a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from toolkit.client import Client
from toolkit.transport.grpc import GrpcTransport

C = TypeVar("C", bound=Client)
MAX_MESSAGE_BYTES: Final = 64 << 20


@asynccontextmanager
async def connect(client: type[C], address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> AsyncIterator[C]:
    """A client of what answers at `address` (`HOST:PORT` or `unix:/path`), closed with the block:

    `async with connect(ScoringClient, "127.0.0.1:50051") as scoring: await scoring.score(pair, timeout=5)`
    """
    transport = GrpcTransport((address,), max_message_bytes=max_message_bytes)
    try:
        yield client(transport)
    finally:
        await transport.close()
