"""One gRPC server for one deployment: its methods, `grpc.health.v1`, and reflection where it is wanted.

It listens before the service is ready, so that a wrong address fails at once and callers can ask for its health.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from toolkit import codec
from toolkit.context import Context, metadata_pairs
from toolkit.deadline import Deadline
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, StartError, internal
from toolkit.limits import MessageLimits
from toolkit.listening import check_free
from toolkit.method import Contract, Method
from toolkit.security import guarded_options, guards, server_credentials
from toolkit.spec import Incoming
from toolkit.status import CODES, sent_message, trailers
from toolkit.tasks import wait_closed
from toolkit.transport.base import CallerGoneError
from toolkit.transport.beside import Reading, Readings
from toolkit.transport.grpc import TIME_LEFT, too_large

log = logging.getLogger("toolkit")
SERVING: Final = health_pb2.HealthCheckResponse.SERVING
HEALTH: Final[Any] = health_pb2  # the stubs of its types lag behind
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
EVERYBODY: Final = Incoming()
MIN_PING_INTERVAL_MS: Final = 500
"""How often a handle may ask whether this server lives."""
LAME_DUCK: Final = 0.1
"""Seconds from saying that it serves no more to refusing calls, where somebody watches its health: they go elsewhere."""
LAST_SECONDS: Final = 1.0
"""For a reply to leave after its handler has ended."""
FOREVER: Final = 10**9
"""gRPC tells an absent deadline as a very long one."""


class _Health(health.aio.HealthServicer):  # type: ignore[misc]  # grpc_health has no types
    """Lists what it serves, which gRPC's own does not. Knows who watches, and can send them away: a watch has no end, and
    a stop would wait for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.watching: set[asyncio.Task[Any]] = set()
        self._names: set[str] = set()

    async def set(self, service: str, status: Any) -> None:
        self._names.add(service)
        await super().set(service, status)

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        requests = {name: health_pb2.HealthCheckRequest(service=name) for name in self._names}
        statuses = {name: await self.Check(request, context) for name, request in requests.items()}
        return HEALTH.HealthListResponse(statuses=statuses)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        """A handler that is cancelled does not end its call, one that returns does."""
        watch = asyncio.create_task(super().Watch(request, context))
        self.watching.add(watch)
        try:
            await asyncio.wait([watch])
        finally:
            self.watching.discard(watch)
            await wait_closed(watch)

    def end_watches(self) -> None:
        for watch in self.watching:
            watch.cancel()


class Server:
    """Serves a contract: `listen`, then `open` once there is a service to answer, and `drain` at the end."""

    def __init__(
        self,
        contract: Contract,
        *,
        limits: MessageLimits,
        reflect: bool = False,
        incoming: Incoming = EVERYBODY,
        shares_ports: bool = False,
    ) -> None:
        self.contract = contract
        self._shares_ports = shares_ports
        self._limits = limits
        self._dispatcher: Dispatcher | None = None
        self._readings = Readings()
        self._incoming = incoming
        self._health = _Health()
        self._server = grpc.aio.server(
            interceptors=guards(incoming, self._health),
            options=[*_options(limits.largest(contract), shares_ports), *guarded_options(incoming)],
        )
        handlers = {method.name: self._handler(method) for method in contract.methods}
        generic = grpc.method_handlers_generic_handler(contract.name, handlers)
        self._server.add_generic_rpc_handlers((generic, self._readings.handler))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if reflect:
            names = (contract.name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def listen(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """Bind and start; not serving yet. Returns the addresses with real ports. Raises StartError where one is taken."""
        bound = tuple(self._bind(address) for address in addresses)
        await self._set_health(NOT_SERVING)
        await self._server.start()
        return bound

    async def open(self, dispatcher: Dispatcher) -> None:
        """Answer calls from now on."""
        self._dispatcher = dispatcher
        await self._set_health(SERVING)

    async def drain(self, timeout: float, *, is_replaced: bool = False) -> int:
        """Refuse new calls, let those in flight finish for at most `timeout` seconds, then cancel them. Returns how many
        had to be cancelled.

        `is_replaced`: somebody else listens on our ports already. Then callers are not told that nobody serves here: they
        connect anew, and never notice.
        """
        if not is_replaced:
            await self._health.enter_graceful_shutdown()
            if self._health.watching:
                await asyncio.sleep(min(LAME_DUCK, timeout))
        refusing = asyncio.create_task(self._server.stop(None if not timeout else timeout + LAST_SECONDS))
        left = 0
        if self._dispatcher is not None and not await self._dispatcher.wait_idle(timeout):
            left = self._dispatcher.in_flight
            await self._server.stop(None)
        self._health.end_watches()
        await refusing
        return left

    def _bind(self, address: str) -> str:
        if not self._shares_ports or address.startswith("unix:"):
            check_free(address)
        credentials = server_credentials(self._incoming)  # each port has its own: gRPC tells a change to one only
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError:
            raise StartError(f"cannot listen on {address}: gRPC refuses it, and says why above") from None
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    async def _set_health(self, status: int) -> None:
        for name in ("", self.contract.name):
            await self._health.set(name, status)

    def _handler(self, method: Method[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        if method.server_streaming:
            stream = self._stream(method)
            if method.client_streaming:
                return grpc.stream_stream_rpc_method_handler(self._reading(stream))
            return grpc.unary_stream_rpc_method_handler(stream)
        reply = self._reply(method)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._reading(reply))
        return grpc.unary_unary_rpc_method_handler(reply)

    def _reply(self, method: Method[Any, Any]) -> Callable[[Any, Any], Awaitable[bytes]]:
        limit = self._limits.of(method)

        async def handle(data: Any, call: Any) -> bytes:
            context = _context(method, call)
            try:
                reply = await self._ready().reply(method, self._read(method, data, call, limit), context)
                return _encoded(reply, limit)
            except ServiceError as error:
                _fail(call, error)
                return b""
            finally:
                _send_metadata(call, context)

        return handle

    def _stream(self, method: Method[Any, Any]) -> Callable[[Any, Any], Awaitable[None]]:
        limit = self._limits.of(method)

        async def handle(data: Any, call: Any) -> None:
            async def send(reply: Any) -> None:
                data = _encoded(reply, limit)
                try:
                    await write(data)
                except grpc.aio.BaseError as error:
                    raise CallerGoneError from error

            context, write = _context(method, call), call.write
            try:
                await self._ready().stream(method, self._read(method, data, call, limit), context, send)
            except ServiceError as error:
                _fail(call, error)
            finally:
                _send_metadata(call, context)

        return handle

    def _read(self, method: Method[Any, Any], data: Any, call: Any, limit: int) -> Any:
        try:
            return _decoded(method, data, call, limit)
        except ServiceError as error:
            self._ready().refused(method, error)
            raise

    def _reading(self, handle: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        """The handler of a stream of requests: it counts what it reads of them. One that ends because its caller's stream
        has failed ends its call itself, which a handler that is cancelled does not.
        """

        async def read(requests: Any, call: Any) -> Any:
            with self._readings.of(call) as reading:
                try:
                    return await handle(reading, call)
                except CallerGoneError:
                    if not reading.has_failed:
                        raise
                    _fail(call, ServiceError(Code.CANCELLED, "the caller's stream of requests failed"))
                    return b""

        return read

    def _ready(self) -> Dispatcher:
        if self._dispatcher is None:
            raise ServiceError(Code.UNAVAILABLE, f"{self.contract.name} is still starting")
        return self._dispatcher


def _options(limit: int, shares_ports: bool) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", int(shares_ports)),  # else two servers share a port and nobody is told
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _context(method: Method[Any, Any], call: Any) -> Context:
    left = call.time_remaining()
    sent, peer = call.invocation_metadata(), call.peer()  # now: gRPC reads freed memory once the call has ended
    deadline = None if left is None or left > FOREVER else Deadline.after(_exactly(left, sent))
    return Context(method, deadline=deadline, sent=sent, peer=peer)


def _exactly(left: float, sent: Any) -> float:
    """Seconds left as the caller counts them, where it says so; never more than gRPC says."""
    for key, value in sent:
        if key == TIME_LEFT and isinstance(value, str) and value.isdecimal():
            return min(left, int(value) / 1e6)
    return left


def _decoded(method: Method[Any, Any], data: Any, call: Any, limit: int) -> Any:
    """`data` is what counts the items where the client streams."""
    return _decode_each(method, call, limit, data) if method.client_streaming else _decode(method, data, limit)


def _encoded(reply: Any, limit: int) -> bytes:
    try:
        data = codec.encode(reply)
    except codec.EncodeError as error:
        raise internal(error) from error
    if len(data) > limit:
        raise too_large(type(reply), len(data), limit)
    return data


def _decode(method: Method[Any, Any], data: bytes, limit: int) -> Any:
    if len(data) > limit:
        raise too_large(method.request, len(data), limit)
    try:
        return codec.decode(method.request, data, limit)
    except codec.DecodeError as error:
        raise ServiceError(
            Code.INVALID_ARGUMENT, f"the request is not a valid {method.request.__name__}: {error}"
        ) from error


def _decode_each(method: Method[Any, Any], call: Any, limit: int, reading: Reading) -> AsyncIterator[Any]:
    return _requests(method, call, limit, reading, asyncio.current_task())


async def _requests(
    method: Method[Any, Any], call: Any, limit: int, reading: Reading, answering: asyncio.Task[Any] | None
) -> AsyncIterator[Any]:
    """A stream that its caller cut off looks like one that has ended, and a moment later grpc.aio cancels the task that answers
    it. What gRPC says comes in order: once it has answered another read, that moment is over.
    """
    read = call.read
    try:
        while (data := await read()) is not grpc.aio.EOF:
            reading.add(len(data))
            yield _decode(method, data, limit)
        await read()
    except grpc.aio.BaseError as error:
        raise CallerGoneError from error
    if reading.has_failed or (answering is not None and answering.cancelling()):
        raise CallerGoneError


def _fail(call: Any, error: ServiceError) -> None:
    """End the call with this error. `abort` would do so too, but a stopping server does not wait for aborted calls."""
    call.set_code(CODES[error.code])
    call.set_details(sent_message(error))
    try:
        call.set_trailing_metadata(trailers(error))
    except (TypeError, codec.EncodeError) as wrong:
        log.error("an error goes out without its details", exc_info=wrong)


def _send_metadata(call: Any, context: Context) -> None:
    if context.reply_metadata:
        try:
            pairs = metadata_pairs(context.reply_metadata)
        except (TypeError, ValueError) as wrong:
            log.error("a reply goes out without its metadata", exc_info=wrong)
        else:
            call.set_trailing_metadata((*(call.trailing_metadata() or ()), *pairs))
