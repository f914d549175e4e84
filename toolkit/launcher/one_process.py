"""`toolkit up --one-process`: all of a graph in one process that has the terminal, for a debugger and its breakpoints.

There is no supervisor: Ctrl-C reaches the process itself, its standard input is the terminal's, and it prints what it likes.
(Once `pdb` has continued, Ctrl-C is its own, and leads back to its prompt.)
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from toolkit.errors import GraphError
from toolkit.launcher.devices import Machine
from toolkit.launcher.edges import find_edges
from toolkit.launcher.events import EventReader, Failed, Ready
from toolkit.launcher.folder import project_folder
from toolkit.launcher.fuse import fuse
from toolkit.launcher.inspector import check_edges
from toolkit.launcher.manifest import Graph, find_conflicts
from toolkit.launcher.placement import place
from toolkit.launcher.processes import COMMAND
from toolkit.launcher.security import join
from toolkit.launcher.specify import specify
from toolkit.launcher.trust import plan_trust
from toolkit.spec import PREFIX, ReplicaSpec

_CHUNK = 65536


def up_in_one_process(
    graph: Graph,
    machine: Machine,
    *,
    drain_timeout: float,
    stream: TextIO,
    environ: Mapping[str, str],
    metrics: str = "",
    command: Sequence[str] = COMMAND,
) -> int:
    """Run a graph until it is stopped. Returns the exit code. Raises GraphError, PlacementError before anything starts."""
    planned, env = plan_process(graph, machine, drain_timeout=drain_timeout, stream=stream, environ=environ)
    ours, theirs = socket.socketpair()
    with ours, theirs, _forwarded_signals() as signals:
        spec = replace(planned, control_fd=theirs.fileno(), metrics=metrics)
        inherited = {name: value for name, value in environ.items() if not name.startswith(PREFIX)}
        process = subprocess.Popen(
            command,
            cwd=project_folder(graph.path),
            env={**inherited, **env, **spec.to_environ()},
            pass_fds=[theirs.fileno()],
        )
        signals.process = process
        theirs.close()
        _tell(graph, ours, stream)
        return signals.exit_code(process.wait())


def plan_process(
    graph: Graph, machine: Machine, *, drain_timeout: float, stream: TextIO, environ: Mapping[str, str]
) -> tuple[ReplicaSpec, Mapping[str, str]]:
    """One replica of each deployment, and what its environment is; the entry speaks for all. Nobody waits: a breakpoint in a
    constructor may take hours.
    """
    programs = [name for name, each in graph.services.items() if each.command]
    if programs:
        where = graph.where("services", programs[0], "command")
        raise GraphError(f"{where}: another program cannot be part of this process; run it by itself, and say its url")
    conflicts = list(find_conflicts(graph, graph.services))
    if conflicts:
        raise GraphError("\n".join(map(str, conflicts)))
    edges = find_edges(graph, check_edges(graph, stream, environ))
    trust = plan_trust(graph, edges)
    order = sorted(graph.services, key=lambda name: name != graph.entry)
    placed = {each.deployment: each for each in place(graph, machine, counts=dict.fromkeys(graph.services, 1))}
    specs = [
        replace(
            specify(graph, name, listen=_listen(graph, name), addresses={}, trust=trust[name]),
            start_timeout=_FOREVER,
            drain_timeout=drain_timeout,
        )
        for name in order
    ]
    fused = fuse(graph, graph.name, [placed[name] for name in order])
    return fused.spec(specs), fused.whole.env


_FOREVER = 1e6


def _listen(graph: Graph, name: str) -> tuple[str, ...]:
    """The others are reached without an address."""
    port = graph.port(name)
    return (join(graph.host(name), port),) if port else ()


def _tell(graph: Graph, control: socket.socket, stream: TextIO) -> None:
    """What the process says of itself, until its end."""
    reader = EventReader(graph.name)
    while chunk := _received(control):
        for event in reader.feed(chunk):
            match event:
                case Ready(_, addresses):
                    stream.write(f"ready: {graph.name} on {', '.join(addresses)}, in one process; Ctrl-C drains it\n")
                case Failed(_, message):
                    stream.write(f"error: {message}\n")
                case _:
                    continue
            stream.flush()


def _received(control: socket.socket) -> bytes:
    try:
        return control.recv(_CHUNK)
    except OSError:
        return b""


@dataclass(slots=True)
class _Signals:
    """The terminal sends its Ctrl-C to both: the first is the process's own affair, the second ends it. What comes from
    elsewhere comes to us alone, and is handed on.
    """

    process: subprocess.Popen[bytes] | None = None
    interrupts: int = 0

    def interrupted(self, number: int, frame: object) -> None:
        self.interrupts += 1
        if self.interrupts > 1 and self.process is not None:
            self.process.kill()

    def ended(self, number: int, frame: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)

    def exit_code(self, status: int) -> int:
        if self.interrupts > 1:
            return 128 + signal.SIGINT
        return 128 - status if status < 0 else status


@contextlib.contextmanager
def _forwarded_signals() -> Iterator[_Signals]:
    found = _Signals()
    with contextlib.ExitStack() as restore:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = found.interrupted if number == signal.SIGINT else found.ended
            restore.callback(signal.signal, number, signal.signal(number, handler))
        yield found
