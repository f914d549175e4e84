"""gRPC: another process, another machine, another language.

grpc.aio swallows what a codec raises, so it is given none: bytes go in and come out, and messages are made here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from toolkit import codec
from toolkit.ending import Ending
from toolkit.errors import Code, ServiceError
from toolkit.limits import MessageLimits
from toolkit.method import Contract, Method
from toolkit.security import PLAIN, open_channel
from toolkit.spec import DNS, Outgoing
from toolkit.status import from_status
from toolkit.tasks import is_cancelling, wait_closed
from toolkit.transport.base import Call, CallerGoneError, Feed
from toolkit.transport.beside import Lead

Request = TypeVar("Request")
Reply = TypeVar("Reply")
TIME_LEFT: Final = "toolkit-time-left"
"""Microseconds. gRPC's own header rounds up, and may say as much as 3 % more, for the sake of its compression: with each hop
a callee would have more time than its caller."""
SHORTEST: Final = 1e-6
AHEAD: Final = 4096
"""Bytes that the writer of a stream may be ahead of its reader. One or two items may, of any size."""
RECONNECT_AFTER_MS: Final = 50
RECONNECT_AT_MOST_MS: Final = 1000
CONNECT_WITHIN_MS: Final = 5000
"""For one attempt, its handshake included: a network may be slow, and a machine busy."""


class GrpcTransport:
    """A channel to one address. Make it inside the event loop that uses it."""

    def __init__(
        self,
        address: str,
        *,
        limits: MessageLimits,
        contract: Contract | None = None,
        outgoing: Outgoing = PLAIN,
        keepalive: bool = False,
        authority: str = "",
        ahead: int = AHEAD,
    ) -> None:
        """`authority` is the `HOST:PORT` that the server is called by, and certified for, where `address` does not say it.

        `keepalive` notices within 1.5 s that the other side hangs; servers other than ours take it for an attack."""
        self.address = address
        self._limits = limits
        largest = limits.default if contract is None else limits.largest(contract)
        options = _options(largest) + (KEEPALIVE if keepalive else [])
        if authority and not outgoing.server_name:
            options.append(("grpc.default_authority", authority))
        self.channel = open_channel(target(address), options, outgoing)
        self._open_streams = partial(open_channel, target(address), [*options, *_window(ahead)], outgoing)
        self._streams: grpc.aio.Channel | None = None
        self._ahead = ahead
        self._callables: dict[str, tuple[Any, int]] = {}

    async def unary(self, method: Method[Request, Reply], request: Request, call: Call) -> Reply:
        send, limit = self._callables.get(method.path) or self._callable(method)
        data = _encode(request, limit)
        try:
            reply = await send(data, **_sent_with(call))
        except grpc.aio.AioRpcError as error:
            raise from_status(error, self.address) from None
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            raise self._cut_off() from None
        return _decode(method.reply, reply, limit)

    async def client_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> Reply:
        send, limit = self._callable(method)
        lead = Lead(self._channel_for(method), self._ahead)
        ongoing = send(**_sent_with(replace(call, metadata=(*call.metadata, *lead.metadata))))
        ending = Ending(ongoing)
        feed = Feed(method, requests, lambda request: _encode(request, limit))
        feeding = asyncio.create_task(_write(ongoing, feed, lead))
        try:
            reply = await ongoing
        except grpc.aio.AioRpcError as error:
            feed.raise_failure()
            raise from_status(await ending.of(error) or error, self.address) from None
        except asyncio.CancelledError:
            feed.raise_failure()
            if is_cancelling():
                raise
            raise self._cut_off() from None
        finally:
            ongoing.cancel()
            await wait_closed(feeding)
            await lead.close()
            await feed.aclose()
        return _decode(method.reply, reply, limit)

    async def server_stream(self, method: Method[Request, Reply], request: Request, call: Call) -> AsyncIterator[Reply]:
        send, limit = self._callable(method)
        data = _encode(request, limit)
        ongoing = send(data, **_sent_with(call))
        try:
            async for reply in ongoing:
                yield _decode(method.reply, reply, limit)
        except grpc.aio.AioRpcError as error:
            raise from_status(error, self.address) from None
        except asyncio.CancelledError:
            if is_cancelling():
                raise
            raise self._cut_off() from None
        finally:
            ongoing.cancel()

    async def bidi_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> AsyncIterator[Reply]:
        send, limit = self._callable(method)
        lead = Lead(self._channel_for(method), self._ahead)
        ongoing = send(**_sent_with(replace(call, metadata=(*call.metadata, *lead.metadata))))
        ending = Ending(ongoing)
        feed = Feed(method, requests, lambda request: _encode(request, limit))
        feeding = asyncio.create_task(_write(ongoing, feed, lead))
        try:
            async for reply in ongoing:
                yield _decode(method.reply, reply, limit)
        except grpc.aio.AioRpcError as error:
            feed.raise_failure()
            said = await ending.of(error)
            if said is not None:
                raise from_status(said, self.address) from None
        except asyncio.CancelledError:
            feed.raise_failure()
            if is_cancelling():
                raise
            raise self._cut_off() from None
        finally:
            ongoing.cancel()
            await wait_closed(feeding)
            await lead.close()
            await feed.aclose()

    async def close(self) -> None:
        await self.channel.close()
        if self._streams is not None:
            await self._streams.close()

    def _cut_off(self) -> ServiceError:
        """How a call ends that nobody has cancelled: its channel was closed, as one is an hour after its files were renewed."""
        return ServiceError(Code.UNAVAILABLE, f"the channel to {self.address} was closed before the call had ended")

    def _callable(self, method: Method[Any, Any]) -> tuple[Any, int]:
        """gRPC's function for a method, and the method's message limit."""
        found = self._callables.get(method.path)
        if found is None:
            shape = ("stream" if method.client_streaming else "unary", "stream" if method.server_streaming else "unary")
            send = getattr(self._channel_for(method), "_".join(shape))(method.path)
            found = self._callables[method.path] = (send, self._limits.of(method))
        return found

    def _channel_for(self, method: Method[Any, Any]) -> grpc.aio.Channel:
        """Streams of replies have a connection of their own: how far a server may be ahead of its reader is settled for a whole
        connection, and what is right for many small replies is too little for a large one.
        """
        if not method.server_streaming:
            return self.channel
        if self._streams is None:
            self._streams = self._open_streams()
        return self._streams


def target(address: str) -> str:
    """gRPC's name for an address."""
    return address if address.startswith(("unix:", DNS)) else DNS + address


def too_large(kind: type[Any], size: int, limit: int) -> ServiceError:
    return ServiceError(
        Code.RESOURCE_EXHAUSTED,
        f"a {kind.__name__} of {size} bytes is over this method's limit of {limit}; send less, or raise `max_message` in "
        "the graph file",
    )


def _options(limit: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_AFTER_MS),
        ("grpc.min_reconnect_backoff_ms", CONNECT_WITHIN_MS),  # the name notwithstanding, it puts off nothing
        ("grpc.max_reconnect_backoff_ms", RECONNECT_AT_MOST_MS),
    ]


def _window(size: int) -> list[tuple[str, Any]]:
    """HTTP/2's own flow control, held at `size`: by itself gRPC lets it grow to megabytes, for throughput."""
    return [("grpc.http2.lookahead_bytes", size), ("grpc.http2.bdp_probe", 0)]


KEEPALIVE: Final[list[tuple[str, Any]]] = [
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 500),  # keepalive_timeout_ms alone never fires
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
"""A connection that is silent is asked whether it lives, and given up within 1.5 s. Our own servers allow that."""


def _sent_with(call: Call) -> dict[str, Any]:
    """The time left and the metadata, as gRPC takes them."""
    if call.deadline is None:
        return {"metadata": call.metadata or None}
    left = max(call.deadline.remaining(), SHORTEST)
    return {"timeout": left, "metadata": (*call.metadata, (TIME_LEFT, str(int(left * 1e6))))}


def _encode(message: Any, limit: int) -> bytes:
    data = codec.encode(message)
    if len(data) > limit:
        raise too_large(type(message), len(data), limit)
    return data


def _decode(cls: type[Reply], data: bytes, limit: int) -> Reply:
    if len(data) > limit:
        raise too_large(cls, len(data), limit)
    try:
        return codec.decode(cls, data, limit)
    except codec.DecodeError as error:
        raise ServiceError(Code.INTERNAL, f"the reply is not a valid {cls.__name__}: {error}") from error


async def _write(ongoing: Any, feed: Feed, lead: Lead) -> None:
    """Send the caller's stream. When it fails, the handler hears so after the last item, or its call is cancelled."""
    try:
        try:
            async for data in feed:
                if not lead.send_nowait(len(data)):
                    await lead.wait()
                await ongoing.write(data)
        except CallerGoneError:
            await ongoing.wait_for_connection()  # nobody can speak of a call that has not begun
            if not await lead.fail():
                ongoing.cancel()
        await ongoing.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return  # the call has ended, and its status says how
    except asyncio.CancelledError:
        ongoing.cancel()
        raise
