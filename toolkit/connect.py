"""From addresses to a handle over gRPC. `connect()` gives a script, a notebook or a test a typed client from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, cast

from toolkit.client import Client
from toolkit.contract import watch_serving
from toolkit.limits import DEFAULT, MessageLimits
from toolkit.method import Contract
from toolkit.security import PLAIN
from toolkit.spec import Outgoing
from toolkit.transport.base import Transport
from toolkit.transport.grpc import GrpcTransport
from toolkit.transport.pool import HandleOptions, PoolTransport

C = TypeVar("C", bound=Client)


@asynccontextmanager
async def connect(client: type[C], *addresses: str, max_message_bytes: int = DEFAULT) -> AsyncIterator[C]:
    """A client of what answers at these addresses, replicas of one another (`HOST:PORT` or `unix:/path`), closed with the
    block:

    `async with connect(ScoringClient, "127.0.0.1:50051") as scoring: await scoring.score(pair, timeout=5)`
    """
    limits = MessageLimits(max_message_bytes)
    transport = pool(addresses, client.__contract__, name=client.__contract__.name, limits=limits)
    try:
        yield client(transport)
    finally:
        await transport.close()


def pool(
    addresses: Sequence[str],
    contract: Contract,
    *,
    name: str,
    limits: MessageLimits,
    outgoing: Outgoing = PLAIN,
    keepalive: bool = False,
    options: HandleOptions | None = None,
) -> PoolTransport:
    """What carries a handle's calls to the replicas at `addresses`, which are watched over `grpc.health.v1`."""

    def watch(transport: Transport) -> AsyncIterator[bool]:
        return watch_serving(cast("GrpcTransport", transport).channel, contract.name)

    return PoolTransport(
        addresses,
        lambda address: GrpcTransport(
            (address,), limits=limits, contract=contract, outgoing=outgoing, keepalive=keepalive
        ),
        name=name,
        watch=watch,
        options=options,
    )
