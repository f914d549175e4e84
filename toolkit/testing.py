"""Tests of services: one with fakes behind it, a whole graph in this process, a whole graph in real processes.

Nothing here waits by the clock, and every message goes through its encoding, so that what passes passes between processes.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from toolkit.client import Client
from toolkit.connect import connect
from toolkit.contract import wait_serving
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError, StartError, ToolkitError
from toolkit.launcher.addresses import pick_free_port
from toolkit.launcher.folder import project_folder
from toolkit.launcher.hints import near
from toolkit.launcher.manifest import Graph, load_graph
from toolkit.launcher.security import LOOPBACK
from toolkit.load import constructor_arguments, load_service
from toolkit.method import Method
from toolkit.security import PLAIN, open_channel
from toolkit.service import Service, construct, dependencies
from toolkit.transport.base import Call, Transport
from toolkit.transport.local import LocalTransport

C = TypeVar("C", bound=Client)
Request = TypeVar("Request")
Reply = TypeVar("Reply")
TIMEOUT: Final = 30.0
"""Seconds that a call may take when a test sets no timeout."""
READY_TIMEOUT: Final = 300.0
"""Seconds that a graph of real processes may take to come up."""
STOP_TIMEOUT: Final = 60.0


@asynccontextmanager
async def serve(
    service: Service, client: type[C], *, strict: bool = True, handles: Mapping[str, Service | Client] | None = None
) -> AsyncIterator[C]:
    """A client of `service`, which is entered and left with the block:

    `async with serve(Scoring(), ScoringClient) as scoring: ...`

    `handles` are what it calls: services, fakes among them, which are served in the same way, or clients. One that it does
    not name is refused, and so is one of another contract. A handle may also be set before: `graph.classifier = client`.
    `strict` sends every message through its encoding.
    """
    _check_contract(type(service).__name__, service, client)
    wanted = dependencies(type(service))
    given = dict(handles or {})
    for name in given:
        if name not in wanted:
            raise TypeError(f"{type(service).__name__} has no handle {name!r}; {near(name, wanted) or _known(wanted)}")
    async with AsyncExitStack() as stack:
        for name, found in given.items():
            if isinstance(found, Service):
                handle: Client = await stack.enter_async_context(serve(found, wanted[name], strict=strict))
            else:
                _check_contract(f"the handle {name}", found, wanted[name])
                handle = found
            setattr(service, name, handle)
        await stack.enter_async_context(service)
        transport = LocalTransport(Dispatcher(service, timeout=TIMEOUT), strict=strict)
        stack.push_async_callback(transport.close)
        yield client(transport)


def fake(client: type[Client], **answers: Any) -> Fake:
    """A stand-in for what `client` calls, checked against the contract: `fake(ScoringClient, score=Similarity(value=0.5))`.

    An answer is a reply, for a stream of replies a list of them; or an exception, which may also end a list; or a function
    of the request (of an async iterator of requests where they are a stream) that returns one of these, `async` or not.
    Raises TypeError for a method that the contract has and the fake has not, or the other way round, and for a reply of
    another type.
    """
    return Fake(client, answers)


class Fake(Service):
    """What `fake` makes. `asked` holds the requests that came, by method; a stream of requests as a list."""

    def __init__(self, client: type[Client], answers: Mapping[str, Any]) -> None:
        vars(self)["__contract__"] = contract = client.__contract__
        methods = {method.attribute: method for method in contract.methods}
        for name in answers:
            if name not in methods:
                raise TypeError(f"{contract.name} has no method {name!r}; {near(name, methods) or _known(methods)}")
        missing = [name for name in methods if name not in answers]
        if missing:
            raise TypeError(f"the fake of {contract.name} lacks {', '.join(missing)}: say what each answers")
        self.asked: dict[str, list[Any]] = {name: [] for name in methods}
        for name, method in methods.items():
            _check_answer(method, answers[name])
            setattr(self, name, self._handler(method, answers[name]))

    def _handler(self, method: Method[Any, Any], answer: Any) -> Callable[..., Any]:
        asked = self.asked[method.attribute]

        async def found(request: Any) -> Any:
            if callable(answer) and not isinstance(answer, type):
                asked.append(request)
                value = answer(request)
                return await value if inspect.isawaitable(value) else value
            asked.append([each async for each in request] if method.client_streaming else request)
            return answer

        async def reply(request: Any, context: Any) -> Any:
            return _raised(await found(request))

        async def replies(request: Any, context: Any) -> AsyncIterator[Any]:
            value = _raised(await found(request))
            if isinstance(value, AsyncIterable):
                async for each in value:
                    yield _raised(each)
            else:
                for each in value:
                    yield _raised(each)

        return replies if method.server_streaming else reply


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """What goes wrong with the calls of a handle."""

    delay: float = 0.0
    """Seconds before each call goes out."""
    fail: ServiceError | None = None
    """What calls fail with instead of going out."""
    times: int | None = None
    """How many calls fail; None: all."""


def faulty(client: C, faults: Faults) -> C:
    """The same client over a connection with faults: `graph.classifier = faulty(classifier, Faults(delay=0.2))`."""
    return type(client)(_Faulty(client._transport, faults), client._name)


class _Faulty:
    """A transport in front of another."""

    def __init__(self, inner: Transport, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._left = faults.times

    async def unary(self, method: Method[Request, Reply], request: Request, call: Call) -> Reply:
        await self._suffer(call)
        return await self._inner.unary(method, request, call)

    async def client_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> Reply:
        await self._suffer(call)
        return await self._inner.client_stream(method, requests, call)

    async def server_stream(self, method: Method[Request, Reply], request: Request, call: Call) -> AsyncIterator[Reply]:
        await self._suffer(call)
        async for reply in self._inner.server_stream(method, request, call):
            yield reply

    async def bidi_stream(
        self, method: Method[Request, Reply], requests: AsyncIterable[Request], call: Call
    ) -> AsyncIterator[Reply]:
        await self._suffer(call)
        async for reply in self._inner.bidi_stream(method, requests, call):
            yield reply

    async def close(self) -> None:
        await self._inner.close()

    async def _suffer(self, call: Call) -> None:
        try:
            async with asyncio.timeout(None if call.deadline is None else call.deadline.remaining()):
                await asyncio.sleep(self._faults.delay)
        except TimeoutError:
            raise ServiceError(Code.DEADLINE_EXCEEDED, "the deadline passed on the way") from None
        if self._faults.fail is not None and self._left != 0:
            self._left = None if self._left is None else self._left - 1
            raise self._faults.fail


@asynccontextmanager
async def graph_in_process(
    graph: str | os.PathLike[str],
    client: type[C],
    *,
    instead: Mapping[str, Service] | None = None,
    strict: bool = True,
) -> AsyncIterator[C]:
    """A client of a graph's entry, with all of its deployments in this process, one replica each:

    `async with graph_in_process("graph.yaml", InferenceGraphClient, instead={"gpt2": fake(...)}) as graph: ...`

    `instead` are services that stand in for deployments; the class of one is not even imported. Raises ToolkitError where
    the graph file or a class is wrong.
    """
    found = load_graph(Path(graph))
    stand_ins = dict(instead or {})
    for name in stand_ins:
        if name not in found.services:
            raise TypeError(
                f"{graph} has no deployment {name!r}; {near(name, found.services) or _known(found.services)}"
            )
    folder = str(project_folder(Path(graph)))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    async with AsyncExitStack() as stack:
        transports: dict[str, tuple[Service, LocalTransport]] = {}
        await _bring_up(found, found.entry, stand_ins, transports, stack, strict, ())
        entry, transport = transports[found.entry]
        _check_contract(found.entry, entry, client)
        yield client(transport)


async def _bring_up(
    graph: Graph,
    name: str,
    instead: Mapping[str, Service],
    transports: dict[str, tuple[Service, LocalTransport]],
    stack: AsyncExitStack,
    strict: bool,
    callers: tuple[str, ...],
) -> None:
    """A deployment and, before it, those that it calls."""
    if name in callers:
        raise StartError(f"{' → '.join((*callers, name))} is a ring: none of them can come up first in one process")
    deployment = graph.services[name]
    service = instead.get(name)
    if service is None:
        if deployment.service is None:
            raise StartError(f"{name} has no class: say in `instead` what stands in for it")
        cls = load_service(deployment.service)
        handles: dict[str, Client] = {}
        for handle, wanted in dependencies(cls).items():
            callee = deployment.bind.get(handle, handle)
            if callee not in graph.services:
                raise StartError(
                    f"handle {handle} of {name} has no deployment {callee!r} that runs here; add one with a class, "
                    "or let `bind` name another"
                )
            if callee not in transports:
                await _bring_up(graph, callee, instead, transports, stack, strict, (*callers, name))
            other, transport = transports[callee]
            _check_contract(callee, other, wanted)
            handles[handle] = wanted(transport, callee)
        device = "cpu" if deployment.device == "auto" else deployment.device
        arguments = constructor_arguments(cls, deployment.args, device)
        service = await asyncio.to_thread(construct, cls, handles, arguments)
    await stack.enter_async_context(service)
    dispatcher = Dispatcher(service, timeout=deployment.traffic.timeout or TIMEOUT, forward=graph.forward, name=name)
    transport = LocalTransport(dispatcher, strict=strict)
    stack.push_async_callback(transport.close)
    transports[name] = (service, transport)


@asynccontextmanager
async def graph_in_processes(
    graph: str | os.PathLike[str], client: type[C], *options: str, show: Any = None
) -> AsyncIterator[C]:
    """A client of a graph's entry, which `toolkit up` brings up on a port of its own and takes down with the block.

    `options` are those of `toolkit up`: `"--set", "gpt2.replicas=2"`. What it shows goes to the file `show`, standard error
    if None. Raises ToolkitError when the graph does not come up.
    """
    path = Path(graph)
    entry = load_graph(path).entry
    port = pick_free_port()  # the one in the graph file may be in use, by another graph even
    address = f"{LOOPBACK}:{port}"
    arguments = ["-m", "toolkit", "up", os.fspath(path), "--set", f"{entry}.port={port}", "--stop-with-input", *options]
    up = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,  # ends with us, even where we are killed
        stdout=sys.stderr if show is None else show,
        stderr=show,
        start_new_session=True,  # a Ctrl-C is for us, and we pass it on once
    )
    try:
        await _wait_ready(client, address, up)
        async with connect(client, address) as found:
            yield found
    finally:
        await _stop(up)


async def _stop(up: asyncio.subprocess.Process) -> None:
    if up.returncode is None:
        up.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await up.wait()
    except TimeoutError:
        os.killpg(up.pid, signal.SIGKILL)
        await up.wait()


async def _wait_ready(client: type[Client], address: str, up: asyncio.subprocess.Process) -> None:
    serving = asyncio.create_task(_wait_serving(client, address))
    ended = asyncio.create_task(up.wait())  # with its own words
    try:
        await asyncio.wait((serving, ended), timeout=READY_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    finally:
        serving.cancel()
        ended.cancel()
    if up.returncode is not None:
        raise ToolkitError(f"the graph did not come up: toolkit up ended with exit code {up.returncode}")
    if not serving.done():
        raise ToolkitError(f"the graph is not ready after {READY_TIMEOUT:g} s")


async def _wait_serving(client: type[Client], address: str) -> None:
    channel = open_channel(address, [("grpc.max_reconnect_backoff_ms", 500)], PLAIN)
    try:
        await wait_serving(channel, client.__contract__.name)
    finally:
        await channel.close()


class FakeClock:
    """A clock that stands still until `advance`: hand it in where a `Clock` is taken."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def _check_contract(name: str, one: Service | Client, client: type[Client]) -> None:
    if one.__contract__ != client.__contract__:
        verb = "calls" if isinstance(one, Client) else "serves"
        raise TypeError(
            f"{name} {verb} {one.__contract__.name}, and {client.__name__} calls {client.__contract__.name}"
        )


def _check_answer(method: Method[Any, Any], answer: Any) -> None:
    """What is not made by a function can be checked before the first call."""
    if callable(answer) and not isinstance(answer, type):
        return
    if not method.server_streaming or isinstance(answer, BaseException):
        replies: Iterable[Any] = (answer,)
    elif isinstance(answer, list | tuple):
        replies = answer
    else:
        raise TypeError(f"{method.path} replies with a stream: give a list of {method.reply.__name__}")
    for reply in replies:
        if type(reply) is not method.reply and not isinstance(reply, Exception):
            raise TypeError(f"{method.path} replies with {method.reply.__name__}, not {type(reply).__name__}")


def _raised(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def _known(names: Iterable[str]) -> str:
    return f"known here: {', '.join(names) or 'none'}"
