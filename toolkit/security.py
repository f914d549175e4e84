"""Who may call, and how a deployment that is guarded is called. A server and a channel without either are gRPC's own, untouched.

Server: TLS whose files are read again at a handshake, and a `Guard` that refuses a call before its request is read.
Client: `open_channel`, whose channel sends the token and is renewed when its files change.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from toolkit.credentials import Watched, bearer, check_private, find_refusal, watch_tokens
from toolkit.errors import StartError
from toolkit.handshake import check_authority, check_pair, explain
from toolkit.spec import DNS, Incoming, Outgoing, is_exposed

log = logging.getLogger("toolkit")

AUTHORIZATION: Final = "authorization"
CHECK: Final = "/grpc.health.v1.Health/Check"
"""Open to everybody, as probes need it, and answered without reading what they sent."""
LEAVE_AFTER: Final = 3600.0
"""Seconds that the calls on a channel get whose files have changed; new calls take the new one."""
CLOSED_AT_ONCE: Final = 3
"""Connections that end at once before we believe that it is no accident."""
ASK_AGAIN: Final = 0.1
UNREAD_BYTES: Final = 256 << 10
PLAIN: Final = Outgoing()
Options = Sequence[tuple[str, Any]]


def check_exposure(addresses: Sequence[str], incoming: Incoming, *, insecure: bool) -> None:
    """Raise StartError where a network could reach a replica that asks nothing of its callers."""
    open_to_all = [address for address in addresses if is_exposed(address)]
    if not open_to_all or insecure:
        return
    if not incoming.cert and not incoming.token_file:
        raise StartError(
            f"{', '.join(open_to_all)} can be reached from the network, and callers need neither TLS nor a token; "
            "listen on 127.0.0.1, or give --cert and --key (`toolkit certs` makes them) or --token-file, or say --insecure"
        )
    if not incoming.cert:
        log.warning("%s takes tokens without TLS: the network between can read them", ", ".join(open_to_all))


def server_credentials(incoming: Incoming) -> grpc.ServerCredentials | None:
    """What to listen with; None for plain HTTP/2. Files that change count from the next handshake on. Raises StartError."""
    if not incoming.cert:
        if incoming.caller_ca:
            raise StartError(
                f"callers cannot be asked for certificates of {incoming.caller_ca} without cert and key of our own; name both"
            )
        return None
    paths = [incoming.key, incoming.cert, *([incoming.caller_ca] if incoming.caller_ca else [])]

    def make(data: tuple[bytes, ...]) -> grpc.ServerCertificateConfiguration:
        check_private(incoming.key)
        check_pair(incoming.cert, incoming.key)
        if incoming.caller_ca:
            check_authority(incoming.caller_ca)
        return grpc.ssl_server_certificate_configuration([(data[0], data[1])], data[2] if incoming.caller_ca else None)

    files = _watch(paths, make)
    return grpc.dynamic_ssl_server_credentials(
        files.current(), _only_changes(files), require_client_authentication=bool(incoming.caller_ca)
    )


def _only_changes(files: Watched[Any]) -> Callable[[], Any]:
    """What gRPC asks at each handshake: None where nothing has changed."""
    given = files.current()

    def fetch() -> Any:
        nonlocal given
        before, given = given, files.current()
        return None if given is before else given

    return fetch


def _watch(paths: Sequence[str], make: Callable[[tuple[bytes, ...]], Any]) -> Watched[Any]:
    try:
        return Watched(paths, make)
    except ValueError as error:
        raise StartError(str(error)) from None


def _watch_tokens(path: str) -> Watched[tuple[bytes, ...]]:
    try:
        return watch_tokens(path)
    except ValueError as error:
        raise StartError(str(error)) from None


def is_guarded(incoming: Incoming) -> bool:
    """Whether not everybody who gets through the handshake may call."""
    return bool(incoming.token_file) or incoming.callers is not None


def guards(incoming: Incoming, health: health_pb2_grpc.HealthServicer) -> tuple[Guard, ...]:
    """The interceptors of a server: none where everybody may call. Raises StartError."""
    return (Guard(incoming, health),) if is_guarded(incoming) else ()


def guarded_options(incoming: Incoming) -> tuple[tuple[str, Any], ...]:
    """How little a server takes of a request that nobody has asked for yet. gRPC by itself lets that grow to megabytes a call; a
    request that is being read still comes at full speed.
    """
    return (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", UNREAD_BYTES)) if is_guarded(incoming) else ()


class Guard(grpc.aio.ServerInterceptor):
    """Lets through who brings a token and is one of the callers; reflection counts as any method.

    A handler with a request stream is asked before gRPC reads any of the request, one without only after it has all of it. So
    the refusals here, and every handler behind an identity that only the handler's context tells, take a stream.
    """

    def __init__(self, incoming: Incoming, health: health_pb2_grpc.HealthServicer) -> None:
        self._tokens = _watch_tokens(incoming.token_file) if incoming.token_file else None
        self._callers = None if incoming.callers is None else frozenset(incoming.callers)
        self._check = _answering(health)
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        details: Any = handler_call_details
        if details.method == CHECK:
            return self._check
        if self._tokens is not None:
            sent = next((value for key, value in details.invocation_metadata if key == AUTHORIZATION), None)
            refusal = find_refusal(sent, self._tokens.current())
            if refusal is not None:
                return _refusing(grpc.StatusCode.UNAUTHENTICATED, refusal)
        handler = await continuation(handler_call_details)
        if self._callers is None or handler is None:
            return handler
        found = self._guarded.get(details.method)
        if found is None:
            found = self._guarded[details.method] = _for_callers(handler, self._callers)
        return found


def _refusing(code: grpc.StatusCode, sentence: str) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(requests: Any, call: Any) -> None:
        call.set_code(code)
        call.set_details(sentence)

    return grpc.stream_stream_rpc_method_handler(refuse)


def _answering(health: Any) -> grpc.RpcMethodHandler[Any, Any]:
    async def check(requests: Any, call: Any) -> Any:
        return await health.Check(health_pb2.HealthCheckRequest(), call)

    return grpc.stream_unary_rpc_method_handler(
        check,
        response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
    )


def _for_callers(handler: Any, callers: frozenset[str]) -> grpc.RpcMethodHandler[Any, Any]:
    """The same handler for these callers only."""
    codecs = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    behaviour = (
        (handler.stream_stream if handler.request_streaming else handler.unary_stream)
        if handler.response_streaming
        else (handler.stream_unary if handler.request_streaming else handler.unary_unary)
    )

    async def reply(requests: Any, call: Any) -> Any:
        if _is_refused(call, callers):
            return None
        request = requests if handler.request_streaming else await _one(requests, call)
        return None if request is None else await behaviour(request, call)

    async def stream(requests: Any, call: Any) -> None:
        if _is_refused(call, callers):
            return
        request = requests if handler.request_streaming else await _one(requests, call)
        if request is None:
            return
        replies = behaviour(request, call)
        if not hasattr(replies, "__aiter__"):
            await replies  # it writes by itself
            return
        async with aclosing(replies):
            async for each in replies:
                await call.write(each)

    make: Any = (
        grpc.stream_stream_rpc_method_handler if handler.response_streaming else grpc.stream_unary_rpc_method_handler
    )
    found: grpc.RpcMethodHandler[Any, Any] = make(stream if handler.response_streaming else reply, **codecs)
    return found


async def _one(requests: Any, call: Any) -> Any:
    """The request of a method that takes one; None, and the call's status, where none came."""
    request = await anext(requests, None)
    if request is None:
        call.set_code(grpc.StatusCode.INVALID_ARGUMENT)
        call.set_details("the call ended without a request")
    return request


def _is_refused(call: Any, callers: frozenset[str]) -> bool:
    shown = identities(call.auth_context())
    if callers & shown:
        return False
    call.set_code(grpc.StatusCode.PERMISSION_DENIED)
    call.set_details(
        f"{_named(shown)} is not one of the callers of this deployment; add it to `tls.allow` if it should be"
    )
    return True


def _named(identities: frozenset[str]) -> str:
    """The one that says most: a URI, else the longest name."""
    return max(identities, key=lambda each: ("://" in each, len(each), each), default="a caller without an identity")


def identities(auth_context: Any) -> frozenset[str]:
    """The URIs and DNS names that the caller's certificate vouches for. Neither kind can pass for the other."""
    uris = {value.decode("utf-8", "replace") for value in auth_context.get("peer_uri", ())}
    names = {value.decode("utf-8", "replace") for value in auth_context.get("peer_dns", ())}
    return frozenset({uri for uri in uris if "://" in uri} | {name for name in names if "://" not in name})


def check_outgoing(target: str, outgoing: Outgoing) -> None:
    """Raise StartError where a channel to `target` could not be opened: its files are wrong, or a token would travel for all
    to read.
    """
    _check_token_is_safe(target, outgoing)
    if outgoing.token_file:
        _watch_tokens(outgoing.token_file)
    if outgoing.tls:
        _watch_pem(outgoing)


def _check_token_is_safe(target: str, outgoing: Outgoing) -> None:
    if outgoing.token_file and not outgoing.tls and not outgoing.insecure and is_exposed(target):
        raise StartError(
            f"the token would go to {target.removeprefix(DNS)} unencrypted; use TLS (--ca, or `tls=`), "
            "or say --insecure (`insecure=True`) where you trust the network between"
        )


def open_channel(target: str, options: Options, outgoing: Outgoing = PLAIN) -> grpc.aio.Channel:
    """A channel to `target`. Raises StartError where its files are wrong, or a token would travel for all to read."""
    _check_token_is_safe(target, outgoing)
    if not outgoing.tls and not outgoing.token_file:
        return grpc.aio.insecure_channel(target, options=options)
    return GuardedChannel(target, options, outgoing)


@dataclass(frozen=True, slots=True)
class _Pem:
    """What a channel is opened with."""

    ca: bytes | None
    key: bytes | None
    cert: bytes | None


class GuardedChannel(grpc.aio.Channel):
    """A channel that adds the token to each call, and is opened anew, for new calls, when a PEM file has changed.

    gRPC has credentials for calls, but only over TLS, and none of its channels reads a certificate twice.
    """

    def __init__(self, target: str, options: Options, outgoing: Outgoing) -> None:
        self._target = target
        self._options = list(options)
        if outgoing.server_name:
            self._options.append(("grpc.ssl_target_name_override", outgoing.server_name))
        self._tokens = _watch_tokens(outgoing.token_file) if outgoing.token_file else None
        self._files = _watch_pem(outgoing) if outgoing.tls else None
        self._pem = None if self._files is None else self._files.current()
        self._channel = self._open()
        self._leaving: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def current(self) -> grpc.aio.Channel:
        """gRPC's own channel, for a call that starts now."""
        if self._files is not None and (pem := self._files.current()) is not self._pem:
            self._pem = pem
            leaving = asyncio.get_running_loop().create_task(self._channel.close(LEAVE_AFTER))
            self._leaving[leaving] = self._channel
            leaving.add_done_callback(self._leaving.pop)
            self._channel = self._open()
        return self._channel

    def authorized(self, metadata: Any) -> Any:
        """The metadata of a call with the token, unless the caller said `authorization` himself."""
        if self._tokens is None:
            return metadata
        pairs = tuple(metadata or ())
        if any(pair[0] == AUTHORIZATION for pair in pairs):
            return pairs
        return (*pairs, (AUTHORIZATION, bearer(self._tokens.current()[0])))

    def _open(self) -> grpc.aio.Channel:
        if self._pem is None:
            return grpc.aio.insecure_channel(self._target, options=self._options)
        credentials = grpc.ssl_channel_credentials(self._pem.ca, self._pem.key, self._pem.cert)
        return grpc.aio.secure_channel(self._target, credentials, options=self._options)

    async def close(self, grace: float | None = None) -> None:
        for leaving, channel in tuple(self._leaving.items()):
            leaving.cancel()
            await channel.close(grace)
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self, "stream_stream", args, kwargs)


class _Method:
    """What a channel gives for a method: called with a request, or for a request stream with nothing, it starts a call."""

    def __init__(self, channel: GuardedChannel, shape: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._channel = channel
        self._shape = shape
        self._args = args
        self._kwargs = kwargs
        self._opened: grpc.aio.Channel | None = None
        self._send: Any = None

    def __call__(self, *request: Any, metadata: Any = None, **options: Any) -> Any:
        opened = self._channel.current()
        if opened is not self._opened:
            self._opened, self._send = opened, getattr(opened, self._shape)(*self._args, **self._kwargs)
        return self._send(*request, metadata=self._channel.authorized(metadata), **options)


def _watch_pem(outgoing: Outgoing) -> Watched[_Pem]:
    if bool(outgoing.cert) != bool(outgoing.key):
        raise StartError("a certificate and its key belong together: name both, --cert and --key")
    named = {"ca": outgoing.ca, "key": outgoing.key, "cert": outgoing.cert}
    names = [name for name, path in named.items() if path]

    def make(data: tuple[bytes, ...]) -> _Pem:
        if outgoing.ca:
            check_authority(outgoing.ca)
        if outgoing.cert:
            check_private(outgoing.key)
            check_pair(outgoing.cert, outgoing.key, caller=True)
        return _Pem(**{"ca": None, "key": None, "cert": None, **dict(zip(names, data, strict=True))})

    return _watch([named[name] for name in names], make)


async def wait_connected(channel: grpc.aio.Channel, who: str) -> None:
    """Return once the channel is connected. Raises StartError, which begins with `who`, where no wait can help: TLS on one
    side only, or a certificate that is not accepted.
    """
    closed = 0
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            details = await _last_error(channel)
            closed += "Socket closed" in details
            why = explain(details)
            if why is not None and (closed >= CLOSED_AT_ONCE or "Socket closed" not in details):
                raise StartError(f"{who} cannot be talked to: {why}")
            await asyncio.sleep(ASK_AGAIN)  # gRPC calls it one long failure, however often it tries
        else:
            await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def _last_error(channel: grpc.aio.Channel) -> str:
    """Why the channel is not connected, in gRPC's words. Only a call gets to know."""
    check: Any = channel.unary_unary(CHECK)
    try:
        await check(b"", timeout=1.0)
    except grpc.aio.AioRpcError as error:
        return (error.details() or "") if error.code() is grpc.StatusCode.UNAVAILABLE else ""
    return ""


@contextmanager
def refusals(who: str) -> Iterator[None]:
    """A StartError, which begins with `who`, for a call in this block that is not let through."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise StartError(f"{who} does not let us in: {error.details()}") from None
        raise
