"""The operating system's side of the supervisor: processes, pipes and signals in, one queue of typed events out."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from toolkit.launcher.events import Event, EventReader, Exited, OutOfMemory, Output, Ready, Signalled
from toolkit.launcher.guardian import MARK
from toolkit.launcher.lines import LineSplitter
from toolkit.launcher.memory import MemoryKeeper
from toolkit.spec import PREFIX, ReplicaSpec

COMMAND = (sys.executable, "-m", "toolkit.replica")
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CHUNK = 64 * 1024
_LAST_CHUNKS = 64
"""Read at most so much of what a dead replica left in a pipe: a grandchild that got away may still write."""
_KILL_TIMEOUT = 5.0


class ProcessTable(Protocol):
    """What the supervisor asks of the operating system. `Processes` is the real one."""

    def spawn(self, name: str, spec: ReplicaSpec, env: Mapping[str, str]) -> int:
        """Start a replica. Returns its process id. Raises OSError."""
        ...

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        """Say something to it, without waiting for it to listen."""

    def dump(self, name: str) -> None:
        """Have it write where each of its threads is."""

    def terminate(self, name: str) -> None:
        """Ask it to drain."""

    def kill(self, name: str) -> None:
        """End it and all that it started."""

    def get(self, timeout: float | None) -> Event | None:
        """The next event; None when `timeout` seconds brought none."""


class Processes:
    """Enter it in the main thread: it takes over the signals of `STOP_SIGNALS`. On the way out it kills what still runs.

    Each replica leads a session of its own, so that the terminal's Ctrl-C does not reach it, and is killed as a group.
    """

    def __init__(
        self, folder: Path, *, command: Sequence[str] = COMMAND, environ: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._command = tuple(command)
        inherited = os.environ if environ is None else environ
        self._environ = {name: value for name, value in inherited.items() if not name.startswith(PREFIX)}
        self.mark = secrets.token_hex(16)
        """In the environment of all that is started here, and of all that starts in turn."""
        self._children: dict[str, _Child] = {}
        self._queue: deque[Event] = deque()
        self._memory = MemoryKeeper(time.monotonic)
        self._selector = selectors.DefaultSelector()
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Processes:
        self._cleanup.callback(self._selector.close)
        self._cleanup.callback(self._memory.close)
        wakeup = self._cleanup.enter_context(_caught_signals())
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: self._read_signals(wakeup))
        self._cleanup.callback(self._kill_all)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def how_memory_is_limited(self) -> str:
        """A sentence about `resources.memory`."""
        return self._memory.how

    def listen(self, source: Any, read: Callable[[], Iterable[Event]]) -> None:
        """Ask `read` for events whenever there is something to read from `source`."""
        self._selector.register(source, selectors.EVENT_READ, lambda: self._queue.extend(read()))

    def forget(self, source: Any) -> None:
        self._selector.unregister(source)

    def spawn(self, name: str, spec: ReplicaSpec, env: Mapping[str, str]) -> int:
        child = _start(name, self._command, self._folder, {**self._environ, **env, MARK: self.mark}, spec)
        self._children[name] = child
        if spec.memory is not None:
            self._memory.begin(name, child.process.pid, spec.memory)
        for stream in child.streams:
            self._selector.register(stream.fd, selectors.EVENT_READ, lambda stream=stream: self._read(stream))
        return child.process.pid

    def tell(self, name: str, message: Mapping[str, Any]) -> None:
        child = self._children.get(name)
        if child is not None:
            child.outbox.extend(json.dumps(message).encode() + b"\n")
            self._flush(child)

    def dump(self, name: str) -> None:
        if name in self._children:
            os.kill(self._children[name].process.pid, signal.SIGQUIT)

    def terminate(self, name: str) -> None:
        if name in self._children:
            os.kill(self._children[name].process.pid, signal.SIGTERM)

    def kill(self, name: str) -> None:
        if name in self._children:
            _kill_group(self._children[name].process.pid)

    def get(self, timeout: float | None) -> Event | None:
        if not self._queue:
            for key, _ in self._selector.select(_sooner(timeout, self._memory.patience())):
                if self._selector.get_map().get(key.fd) is key:  # a replica that was reaped just now is forgotten
                    key.data()
            self._end_who_takes_too_much()
        return self._queue.popleft() if self._queue else None

    def _end_who_takes_too_much(self) -> None:
        """That comes before whatever else they say: nobody who takes too much is ready."""
        for event in self._queue:
            if isinstance(event, Ready):
                self._memory.hurry(event.replica)
        for name, used, limit in self._memory.look():
            self._queue.appendleft(OutOfMemory(name, used, limit))
            self.kill(name)

    def _read(self, stream: _Stream) -> None:
        chunk = stream.read()
        if chunk:
            self._queue.extend(stream.feed(chunk))
        elif chunk is not None:
            self._selector.unregister(stream.fd)

    def _flush(self, child: _Child) -> None:
        """Send what the socket takes; the rest waits until it takes more."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while child.outbox:
                del child.outbox[: child.control.send(child.outbox)]
        stream = child.streams[-1]
        if stream.fd in self._selector.get_map():
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.outbox else 0)
            self._selector.modify(stream.fd, wanted, lambda: self._converse(child))

    def _converse(self, child: _Child) -> None:
        if child.outbox:
            self._flush(child)
        self._read(child.streams[-1])

    def _read_signals(self, wakeup: socket.socket) -> None:
        for number in wakeup.recv(_CHUNK):
            if number == signal.SIGCHLD:
                self._reap()
            else:
                self._queue.append(Signalled(number))

    def _reap(self) -> None:
        for child in [each for each in self._children.values() if _has_exited(each.process)]:
            _kill_group(child.process.pid)  # while its leader is a zombie, the group's number is nobody else's
            for stream in child.streams:
                self._queue.extend(stream.read_rest())
            self._forget(child)
            status = child.process.wait()
            overdraft = self._memory.end(child.name, is_killed=status == -signal.SIGKILL)
            if overdraft is not None:
                self._queue.append(OutOfMemory(child.name, *overdraft))
            self._queue.append(Exited(child.name, status))

    def _forget(self, child: _Child) -> None:
        del self._children[child.name]
        for stream in child.streams:
            with contextlib.suppress(KeyError):
                self._selector.unregister(stream.fd)
        child.close()

    def _kill_all(self) -> None:
        for child in list(self._children.values()):
            _kill_group(child.process.pid)
        for child in list(self._children.values()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(_KILL_TIMEOUT)
            self._forget(child)


@dataclass(frozen=True, eq=False, slots=True)
class _Stream:
    """One pipe or socket that a replica writes to."""

    fd: int
    feed: Callable[[bytes], Iterable[Event]]
    finish: Callable[[], Iterable[Event]]

    def read(self) -> bytes | None:
        """A chunk; empty at the end, None when there is nothing yet."""
        try:
            return os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def read_rest(self) -> Iterator[Event]:
        for _ in range(_LAST_CHUNKS):
            chunk = self.read()
            if not chunk:
                break
            yield from self.feed(chunk)
        yield from self.finish()


@dataclass(frozen=True, eq=False, slots=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    control: socket.socket
    streams: tuple[_Stream, ...]
    """The last is its control socket."""
    outbox: bytearray = field(default_factory=bytearray)

    def close(self) -> None:
        self.control.close()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _start(name: str, command: Sequence[str], folder: Path, environ: Mapping[str, str], spec: ReplicaSpec) -> _Child:
    control, theirs = socket.socketpair()
    with theirs, contextlib.ExitStack() as undo:
        undo.callback(control.close)
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environ, **replace(spec, control_fd=theirs.fileno()).to_environ()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        undo.pop_all()
    events = EventReader(name)
    assert process.stdout is not None
    assert process.stderr is not None
    streams = (
        _output_stream(name, process.stdout.fileno()),
        _output_stream(name, process.stderr.fileno()),
        _Stream(control.fileno(), events.feed, events.finish),
    )
    for stream in streams:
        os.set_blocking(stream.fd, False)
    return _Child(name, process, control, streams)


def _output_stream(name: str, fd: int) -> _Stream:
    lines = LineSplitter()
    return _Stream(
        fd,
        lambda chunk: (Output(name, text, transient) for text, transient in lines.feed(chunk)),
        lambda: (Output(name, text, transient) for text, transient in lines.finish()),
    )


@contextlib.contextmanager
def _caught_signals() -> Iterator[socket.socket]:
    """A socket that each signal writes its number to. One that is ignored stays so, as `nohup` wants."""
    reader, writer = socket.socketpair()
    with reader, writer, contextlib.ExitStack() as restore:
        reader.setblocking(False)
        writer.setblocking(False)
        restore.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False))
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            before = signal.getsignal(number)
            if before != signal.SIG_IGN or number == signal.SIGCHLD:
                restore.callback(signal.signal, number, before)
                signal.signal(number, lambda number, frame: None)
        yield reader


def _sooner(one: float | None, other: float | None) -> float | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _has_exited(process: subprocess.Popen[bytes]) -> bool:
    """Without reaping it, where the platform can tell."""
    if not hasattr(os, "waitid"):
        return process.poll() is not None
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
