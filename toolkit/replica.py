"""One process, one deployment: `python -m toolkit.replica services.scoring.service:Scoring --listen 127.0.0.1:50052`.

The story of a replica, from its specification to its drain, is told in `run`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from toolkit.affinity import run_on
from toolkit.client import Client
from toolkit.collect import Collector
from toolkit.connect import pool
from toolkit.contract import check_contract
from toolkit.control import Addresses, Control
from toolkit.dispatch import Dispatcher
from toolkit.errors import StartError, ToolkitError
from toolkit.foreign import run_command
from toolkit.gpu import limit_gpu_memory
from toolkit.here import Here, Part, callers_first
from toolkit.inspect import describe
from toolkit.lifeline import die_with_parent
from toolkit.limits import MessageLimits
from toolkit.load import constructor_arguments, load_service, project_files, told
from toolkit.memory import keep_freed_memory
from toolkit.policy.admission import AdmissionOptions
from toolkit.policy.hedge import HedgeOptions
from toolkit.scrape import served
from toolkit.security import PLAIN, check_exposure, refusals, wait_connected
from toolkit.server import Server
from toolkit.service import Service, construct, dependencies, reporter
from toolkit.spec import LOAD_INTERVAL, Outgoing, ReplicaSpec, check_address, check_port, check_target
from toolkit.tasks import in_daemon_thread, wait_closed
from toolkit.transport.base import Transport
from toolkit.transport.grpc import AHEAD, GrpcTransport
from toolkit.transport.local import LocalTransport
from toolkit.transport.pool import HandleOptions, PoolTransport

log = logging.getLogger("toolkit")
DRAIN_INCOMPLETE = 8
CHECK_AGAIN_AFTER: Final = 0.1
CHECK_TIMEOUT: Final = 5.0


async def run(
    spec: ReplicaSpec,
    service: type[Service],
    control: Control,
    stop: asyncio.Event,
    here: Here,
    collector: Collector,
) -> int:
    """Serve until told to stop. Returns how many calls its end cut off. Raises StartError where it cannot start."""
    check_exposure(spec.listen, spec.incoming, insecure=spec.insecure)
    handles = _connect(spec, dependencies(service), here)
    control.listen(lambda addresses: _follow(spec, handles, addresses), lambda: os._exit(1))  # nobody waits for a drain
    limits = _limits(spec, spec.deployment)
    server = Server(
        service.__contract__,
        limits=limits,
        reflect=spec.reflection,
        incoming=spec.incoming,
        shares_ports=spec.shares_ports,
    )
    async with AsyncExitStack() as stack:
        for transport in handles.values():
            stack.push_async_callback(transport.close)
        stack.push_async_callback(server.drain, 0)
        addresses = () if spec.joins else await server.listen(spec.listen)
        if not control.has_launcher:
            _announce(handles)
        start = asyncio.create_task(_start(spec, service, handles, control, here, stack))
        if not await _first(start, stop, spec.start_timeout, handles):
            return 0
        gc.freeze()  # what was loaded stays: no collection needs to look at it again
        dispatcher = start.result()
        addresses = addresses or await server.listen(spec.listen)
        await server.open(dispatcher)
        collector.add(spec.deployment, dispatcher, handles)
        if spec.reports_files:
            control.loaded(project_files())
        control.ready(addresses)
        where = ", ".join(addresses) or "no address of its own"
        log.info("%s serves %s on %s", spec.deployment, service.__contract__.name, where)
        measured = collector if spec.reports_metrics else None
        telling = asyncio.create_task(_tell_load(control, lambda: dispatcher.load, measured))
        await stop.wait()
        await wait_closed(telling)
        control.draining()
        return await server.drain(here.time_left(spec.drain_timeout), is_replaced=control.is_replaced)


async def run_alone(spec: ReplicaSpec, service: type[Service], control: Control) -> int:
    """One deployment in the process, as it is meant to be."""
    collector = Collector()
    with _served_metrics(spec, collector):
        return await run(spec, service, control, _stop_signal(), Here(), collector)


async def run_together(specs: Sequence[ReplicaSpec], services: Sequence[type[Service]], control: Control) -> int:
    """Several deployments in one process. It is ready when all are, and stops callers before callees, all of them within one
    `drain_timeout`.
    """
    collector = Collector()
    try:
        with _served_metrics(specs[0], collector):
            return await _run_parts(specs, services, control, collector)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group.exceptions[0].__cause__


async def _run_parts(
    specs: Sequence[ReplicaSpec], services: Sequence[type[Service]], control: Control, collector: Collector
) -> int:
    stop = _stop_signal()
    here = Here({spec.deployment: service for spec, service in zip(specs, services, strict=True)})
    parts = {spec.deployment: Part(spec.deployment, control) for spec in specs}
    control.listen(lambda addresses: _follow_all(parts, addresses), lambda: os._exit(1))
    stops = {spec.deployment: asyncio.Event() for spec in specs}
    calls: dict[str, set[str]] = {}
    lost = 0
    async with asyncio.TaskGroup() as group:
        runs: dict[str, asyncio.Task[int]] = {}
        for spec, service in zip(specs, services, strict=True):
            name = spec.deployment
            calls[name] = {
                callee for handle in dependencies(service) if (callee := spec.bind.get(handle, handle)) in here
            }
            runs[name] = group.create_task(_run_part(spec, service, parts[name], stops[name], here, collector))
        telling = group.create_task(_tell(specs[0], here, parts, control, collector))
        await stop.wait()
        await wait_closed(telling)
        here.begin_drain()
        control.draining()
        for tier in callers_first(calls):
            for name in tier:
                parts[name].is_replaced = control.is_replaced
                stops[name].set()
            lost += sum(await asyncio.gather(*(runs[name] for name in tier)))
    return lost


async def _run_part(
    spec: ReplicaSpec,
    service: type[Service],
    part: Part,
    stop: asyncio.Event,
    here: Here,
    collector: Collector,
) -> int:
    try:
        return await run(spec, service, part, stop, here, collector)
    except ToolkitError as error:
        raise StartError(f"{spec.deployment}: {error}") from error.__cause__


@contextmanager
def _served_metrics(spec: ReplicaSpec, collector: Collector) -> Iterator[None]:
    """From the start on, so that an address that is taken is told at once."""
    if not spec.metrics:
        yield
        return
    with served(spec.metrics, collector.text) as address:
        log.info("metrics on http://%s/metrics", address)
        yield


async def _tell(
    spec: ReplicaSpec, here: Here, parts: Mapping[str, Part], control: Control, collector: Collector
) -> None:
    """What is said of the process as a whole."""
    for part in parts.values():
        await part.is_ready.wait()
    if spec.reports_files:
        control.loaded(project_files())
    control.ready(tuple(address for part in parts.values() for address in part.addresses))
    await _tell_load(control, lambda: here.load, collector if spec.reports_metrics else None)


def _follow_all(parts: Mapping[str, Part], addresses: Addresses) -> None:
    for part in parts.values():
        part.moved(addresses)


def _follow(spec: ReplicaSpec, handles: Mapping[str, PoolTransport], addresses: Addresses) -> None:
    """Replicas of those that we call have come or gone."""
    for name, found in handles.items():
        moved = addresses.get(spec.bind.get(name, name))
        if moved is not None:
            found.set_addresses(moved)


async def _tell_load(control: Control, load: Callable[[], tuple[int, int, float]], collector: Collector | None) -> None:
    while control.has_launcher:
        control.load(*load())
        if collector is not None:
            control.measured(collector.samples())
        await asyncio.sleep(LOAD_INTERVAL)


def _dispatcher(spec: ReplicaSpec, service: Service) -> Dispatcher:
    admission = AdmissionOptions(max_concurrency=spec.max_concurrency, max_queue=spec.max_queue)
    return Dispatcher(
        service,
        timeout=spec.timeout,
        idle_timeout=spec.idle_timeout,
        forward=spec.forward,
        admission=admission,
        batching=spec.batching,
        name=spec.deployment,
    )


async def _start(
    spec: ReplicaSpec,
    service: type[Service],
    handles: Mapping[str, PoolTransport],
    control: Control,
    here: Here,
    stack: AsyncExitStack,
) -> Dispatcher:
    """What answers calls, once the service is loaded and entered, all of its handles serve what it expects, and those with whom
    it shares its process are as far: nobody calls a process that may yet fail.
    """
    clients = dependencies(service)
    checks = [_check(name, clients[name], found) for name, found in handles.items()]
    bound = {name: clients[name](transport, spec.bind.get(name, name)) for name, transport in handles.items()}
    args = constructor_arguments(service, spec.args, spec.device)
    reporter.set(control.progress)
    async with asyncio.TaskGroup() as group:
        for check in checks:
            group.create_task(check)
        loading = group.create_task(_construct(spec, service, bound, args))
    instance = loading.result()
    with _told_as(f"{service.__name__} cannot be entered"):
        await stack.enter_async_context(instance)
    if handles:
        control.waiting(sorted(handles))
        await asyncio.gather(*(found.wait_ready() for found in handles.values() if found.transports))
    dispatcher = _dispatcher(spec, instance)
    here.open(spec.deployment, dispatcher)
    await here.wait_open()
    return dispatcher


async def _construct(
    spec: ReplicaSpec, service: type[Service], handles: Mapping[str, Client], args: Mapping[str, Any]
) -> Service:
    def make() -> Service:
        _limit_gpu_memory(spec)
        made = construct(service, handles, args)
        _limit_gpu_memory(spec)  # where torch was imported no sooner
        return made

    with _told_as(f"{service.__name__} cannot be made"):
        return await in_daemon_thread(make)


def _limit_gpu_memory(spec: ReplicaSpec) -> None:
    if spec.gpu_memory is not None:
        limit_gpu_memory(spec.gpu_memory)


@contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Whatever user code raises in this block is a StartError."""
    try:
        yield
    except ToolkitError:
        raise
    except Exception as error:
        raise StartError(f"{what}: {told(error)}") from error


async def _check(name: str, client: type[Client], handle: PoolTransport) -> None:
    """Return once those that the handle reaches serve what it expects."""
    if handle.has_names:
        await _check_first(name, client, handle)
    else:
        await _check_all(name, client, handle)


async def _check_first(name: str, client: type[Client], handle: PoolTransport) -> None:
    """Where replicas come and go, the first that is ready speaks for all."""
    while True:
        await handle.wait_ready()
        for address in [replica.address for replica in handle.replicas if replica.is_present]:
            try:
                async with asyncio.timeout(CHECK_TIMEOUT):
                    return await _check_one(name, client, handle.transports[address])
            except TimeoutError:
                break  # it went in this very moment
        await asyncio.sleep(CHECK_AGAIN_AFTER)


async def _check_all(name: str, client: type[Client], handle: PoolTransport) -> None:
    """Those that the launcher takes away meanwhile need not answer."""
    checked: set[str] = set()
    while missing := [address for address in handle.transports if address not in checked]:
        address = missing[0]
        check = asyncio.create_task(_check_one(name, client, handle.transports[address]))
        try:
            while not check.done() and address in handle.transports:
                await asyncio.wait([check], timeout=CHECK_AGAIN_AFTER)
            if check.done():
                check.result()
        finally:
            await wait_closed(check)
        checked.add(address)


async def _check_one(name: str, client: type[Client], transport: Transport) -> None:
    if isinstance(transport, LocalTransport):
        return  # `Here` has compared them
    assert isinstance(transport, GrpcTransport)  # what `_connect` makes
    address, is_checked = transport.address, False
    while not is_checked:
        await wait_connected(transport.channel, f"handle {name}: {address}")
        try:
            with refusals(f"handle {name}: {address}"):
                await check_contract(transport.channel, client.__contract__.name, name, address)
            is_checked = True
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                what = f"handle {name}: {address} cannot be asked what it serves"
                raise StartError(f"{what}: {error.details()}") from None
            await asyncio.sleep(CHECK_AGAIN_AFTER)  # it went away meanwhile


def _announce(handles: Mapping[str, PoolTransport]) -> None:
    for name, found in handles.items():
        log.info("handle %s calls %s", name, found.where)


def _late(timeout: float, handles: Mapping[str, PoolTransport]) -> str:
    """What keeps a start that is not ready in time."""
    silent = [
        f"handle {name} at {found.where}"
        for name, found in handles.items()
        if not any(_is_connected(transport) for transport in found.transports.values())
    ]
    if silent:
        what = "; ".join(silent)
        return f"not ready after {timeout:g} s: nobody answers for {what}; start it, or name another address"
    return f"not ready after {timeout:g} s; raise start_timeout if it needs longer"


def _is_connected(transport: Transport) -> bool:
    if isinstance(transport, LocalTransport):
        return True
    assert isinstance(transport, GrpcTransport)  # what `_connect` makes
    return transport.channel.get_state() is grpc.ChannelConnectivity.READY


def _connect(spec: ReplicaSpec, clients: Mapping[str, type[Client]], here: Here) -> dict[str, PoolTransport]:
    found: dict[str, PoolTransport] = {}
    for name in clients:
        deployment = spec.bind.get(name, name)
        if deployment in here:
            found[name] = here.pool(deployment, name, clients[name], _handle_options(spec, deployment))
            continue
        if deployment not in spec.addresses:
            raise StartError(
                f"handle {name} has no deployment {deployment!r}; known: {', '.join(sorted(spec.addresses)) or 'none'}. "
                f"Add it to the graph file, let `bind` name another, or pass --handle {name}=ADDRESS"
            )
        outgoing = spec.outgoing.get(deployment, PLAIN)
        found[name] = pool(
            spec.addresses[deployment],
            clients[name].__contract__,
            name=deployment,
            limits=_limits(spec, deployment),
            outgoing=outgoing,
            keepalive=not outgoing.foreign,
            options=_handle_options(spec, deployment),
            ahead=spec.ahead.get(deployment, AHEAD),
        )
    return found


def _handle_options(spec: ReplicaSpec, deployment: str) -> HandleOptions:
    delay = spec.hedges.get(deployment)
    hedge = None if delay is None else HedgeOptions(delay=delay or None)
    return HandleOptions(hedge=hedge, bulkhead=AdmissionOptions(max_concurrency=spec.max_outstanding, max_queue=0))


def _limits(spec: ReplicaSpec, deployment: str) -> MessageLimits:
    return MessageLimits(spec.max_message_bytes, spec.message_limits.get(deployment, {}))


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _first(
    start: asyncio.Task[Dispatcher], stop: asyncio.Event, timeout: float, handles: Mapping[str, PoolTransport]
) -> bool:
    """True once started, False when told to stop before. Raises what stopped the start."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((start, stopping), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not start.done():
        start.cancel()
        await asyncio.wait([start], timeout=1)
        if stop.is_set():
            return False
        raise StartError(_late(timeout, handles))
    error = start.exception()
    if error is not None:
        raise error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    return True


def main() -> None:
    """Exit code 0 after a stop, 1 when the replica cannot start, 2 for wrong usage, 8 when its stop cut off calls."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    spec = _spec(sys.argv[1:], os.environ)
    control = Control(spec.control_fd)
    if spec.cores and not run_on(spec.cores):
        log.warning("cannot be bound to the cores %s; it runs on all that it may", spec.cores)
    if control.has_launcher:
        die_with_parent()
        if control.is_over():  # it went before we could say so
            os._exit(1)
        faulthandler.enable()
        faulthandler.register(signal.SIGQUIT)  # the launcher asks a replica that hangs where it is
    if keep_freed_memory():
        log.info(
            "malloc: M_MMAP_THRESHOLD and M_TRIM_THRESHOLD set to 1 GiB, so that large messages cause no page faults"
        )
    try:
        if spec.command:
            control.described({"contract": "", "handles": {}, "companions": []})
            lost = _run_loop(run_command(spec, control, os.environ))
            _exit(control, DRAIN_INCOMPLETE if lost else 0)
        service, *others = [load_service(each.service) for each in (spec, *spec.companions)]
        control.described({**describe(service), "companions": [describe(each) for each in others]})
        spec = dataclasses.replace(spec, deployment=spec.deployment or service.__name__)
        if others:
            lost = _run_loop(run_together((spec, *spec.companions), (service, *others), control))
        else:
            lost = _run_loop(run_alone(spec, service, control))
        if lost:
            log.warning("%d calls were still in flight after %g s, and were cancelled", lost, spec.drain_timeout)
        code = DRAIN_INCOMPLETE if lost else 0
    except ToolkitError as error:
        _report(spec, control, error)
        code = 1
    except Exception as error:
        ended = StartError(f"{spec.service} was ended by {told(error)}")
        ended.__cause__ = error
        _report(spec, control, ended)
        code = 1
    _exit(control, code)


def _exit(control: Control, code: int) -> NoReturn:
    control.finish()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a model may still be loading in a thread that nobody can stop


def _report(spec: ReplicaSpec, control: Control, error: ToolkitError) -> None:
    if error.__cause__ is not None:
        log.error("the cause", exc_info=error.__cause__)
    if spec.reports_files:
        control.loaded(project_files(error))
    if control.has_launcher:
        control.failed(str(error))
    else:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's answer to who typed it


def _run_loop(work: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop  # not there on every platform
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def _spec(argv: list[str], environ: Mapping[str, str]) -> ReplicaSpec:
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.replica",
        description="Serve one service alone. Every option may also come as an environment variable (see toolkit/spec.py).",
        epilog="example: python -m toolkit.replica services.scoring.service:Scoring --listen 127.0.0.1:50052",
    )
    parser.add_argument("service", nargs="?", help="module:Class, importable from the working directory")
    parser.add_argument("--listen", action="append", metavar="ADDRESS", help="HOST:PORT or unix:/path; may be repeated")
    parser.add_argument(
        "--args", type=_arguments, metavar="JSON", help="the class's keyword arguments as a JSON object"
    )
    parser.add_argument("--device", help="cpu or cuda:N")
    parser.add_argument(
        "--handle",
        action="append",
        default=[],
        metavar="NAME=ADDRESS",
        help="where a handle's deployment answers; dns:///HOST:PORT: at each address of the host",
    )
    parser.add_argument("--reflection", action="store_true", default=None, help="serve gRPC reflection")
    parser.add_argument(
        "--metrics", metavar="HOST:PORT", help="serve http://HOST:PORT/metrics for Prometheus, to everybody"
    )
    _add_security(parser)
    options = parser.parse_args(argv)
    try:
        if options.service is not None:
            environ = {**environ, "TOOLKIT_SERVICE": options.service}
        spec = ReplicaSpec.from_environ(environ)
        addresses = dict(spec.addresses)
        for name, separator, address in (text.partition("=") for text in options.handle):
            if not separator or not address:
                raise ValueError(f"--handle {name}: write NAME=ADDRESS")
            addresses[name] = (*addresses.get(name, ()), address)
        for address in (each for those in addresses.values() for each in those):
            check_target(address)
        for address in options.listen or spec.listen:
            check_address(address)
        check_port(options.metrics or spec.metrics)
        secured = _secured(options, spec, addresses)
    except (TypeError, ValueError) as error:
        parser.error(str(error) if isinstance(error, ValueError) else "name the service: package.module:Class")
    plain = {name: getattr(options, name) for name in ("args", "device", "reflection", "metrics")}
    given = {**plain, **secured}
    if options.listen:
        given["listen"] = tuple(options.listen)
    return dataclasses.replace(spec, addresses=addresses, **{k: v for k, v in given.items() if v is not None})


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError('must be a JSON object, {"name": value}')
    return value


def _add_security(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("security", "Files only; PEM, and read again when they change.")
    group.add_argument(
        "--cert", metavar="FILE", help="serve TLS with this certificate; handles show it where they are asked"
    )
    group.add_argument("--key", metavar="FILE", help="its key")
    group.add_argument("--caller-ca", metavar="FILE", help="callers must show a certificate that this authority signed")
    group.add_argument(
        "--allow", action="append", metavar="IDENTITY", help="a URI or DNS name in it; may be repeated; default: any"
    )
    group.add_argument(
        "--token-file", metavar="FILE", help="callers must send one of the tokens in it; handles send the first"
    )
    group.add_argument("--ca", metavar="FILE", help="handles call over TLS, and trust this authority")
    group.add_argument(
        "--insecure", action="store_true", default=None, help="listen on a network with neither TLS nor a token"
    )


def _secured(options: argparse.Namespace, spec: ReplicaSpec, handles: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ReplicaSpec that the security flags say."""
    given = {name: getattr(options, name) for name in ("cert", "key", "caller_ca", "token_file")}
    said = {name: value for name, value in given.items() if value is not None}
    if options.allow:
        said["callers"] = tuple(options.allow)
    incoming = dataclasses.replace(spec.incoming, **said)
    if bool(incoming.cert) != bool(incoming.key):
        raise ValueError("--cert and --key belong together: name both")
    if incoming.caller_ca and not incoming.cert:
        raise ValueError("--caller-ca needs --cert and --key: who asks for a certificate shows one")
    if incoming.callers is not None and not incoming.caller_ca:
        raise ValueError("--allow needs --caller-ca, the authority that vouches for these identities")
    found: dict[str, Any] = {"incoming": incoming, "insecure": options.insecure}
    if options.ca or options.token_file:
        shown = {"tls": True, "ca": options.ca, "cert": incoming.cert, "key": incoming.key} if options.ca else {}
        outgoing = Outgoing(token_file=options.token_file or "", insecure=bool(options.insecure), **shown)
        found["outgoing"] = dict.fromkeys(handles, outgoing)
    return found


if __name__ == "__main__":
    main()
