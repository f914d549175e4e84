"""From addresses to a handle over gRPC. `connect()` gives a script, a notebook or a test a typed client from outside."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

from toolkit.client import Client
from toolkit.contract import watch_serving
from toolkit.limits import DEFAULT, MessageLimits
from toolkit.method import Contract
from toolkit.security import PLAIN, check_outgoing
from toolkit.spec import Outgoing
from toolkit.transport.base import Transport
from toolkit.transport.grpc import AHEAD, GrpcTransport
from toolkit.transport.names import Names
from toolkit.transport.pool import HandleOptions, PoolTransport

C = TypeVar("C", bound=Client)
File = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """Call over TLS. PEM files; those that change count for new connections."""

    ca: File = ""
    """Whom the server's certificate must be signed by; none: the public authorities that gRPC brings along."""
    cert: File = ""
    """Our own, where the server asks for one."""
    key: File = ""
    server_name: str = ""
    """The DNS name in the server's certificate, where that is not the host of the address."""


@asynccontextmanager
async def connect(
    client: type[C],
    *addresses: str,
    max_message_bytes: int = DEFAULT,
    tls: Tls | None = None,
    token_file: File = "",
    insecure: bool = False,
    ahead: int = AHEAD,
) -> AsyncIterator[C]:
    """A client of what answers at these addresses, replicas of one another (`HOST:PORT` or `unix:/path`), closed with the
    block. `dns:///HOST:PORT` stands for every address that the host has, as it changes:

    `async with connect(ScoringClient, "127.0.0.1:50051") as scoring: await scoring.score(pair, timeout=5)`

    `token_file` holds a bearer token in its first line, and is read again when it changes. A token goes to another
    machine over TLS only, or with `insecure`. `ahead`: bytes that the writer of a stream may be ahead of its reader. Raises
    StartError where a file is wrong.
    """
    limits = MessageLimits(max_message_bytes)
    outgoing = _outgoing(tls, os.fspath(token_file), insecure)
    contract = client.__contract__
    transport = pool(addresses, contract, name=contract.name, limits=limits, outgoing=outgoing, ahead=ahead)
    try:
        yield client(transport)
    finally:
        await transport.close()


def _outgoing(tls: Tls | None, token_file: str, insecure: bool) -> Outgoing:
    if tls is None:
        return Outgoing(token_file=token_file, insecure=insecure)
    return Outgoing(
        tls=True,
        ca=os.fspath(tls.ca),
        cert=os.fspath(tls.cert),
        key=os.fspath(tls.key),
        server_name=tls.server_name,
        token_file=token_file,
    )


def pool(
    addresses: Sequence[str] | Names,
    contract: Contract,
    *,
    name: str,
    limits: MessageLimits,
    outgoing: Outgoing = PLAIN,
    keepalive: bool = False,
    options: HandleOptions | None = None,
    ahead: int = AHEAD,
) -> PoolTransport:
    """What carries a handle's calls to the replicas at `addresses`, which are watched over `grpc.health.v1`."""
    names = addresses if isinstance(addresses, Names) else Names(addresses)
    for each in names.names:  # its channels are opened later, when nobody would hear of it
        check_outgoing(each, outgoing)

    def watch(transport: Transport) -> AsyncIterator[bool]:
        return watch_serving(cast("GrpcTransport", transport).channel, contract.name)

    def open_one(address: str) -> Transport:
        return GrpcTransport(
            address,
            limits=limits,
            contract=contract,
            outgoing=outgoing,
            keepalive=keepalive,
            authority=names.authority(address),
            ahead=ahead,
        )

    return PoolTransport(
        names if names.names else names.addresses,
        open_one,
        name=name,
        watch=watch,
        options=options,
    )
