"""A replica's side of the socket to its launcher: JSON lines both ways; its end means that the launcher is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

log = logging.getLogger("toolkit")
LONGEST: Final = 240 * 1024
"""Bytes of what a launcher hears in one line, somewhat less than it takes."""
Addresses = Mapping[str, tuple[str, ...]]
"""Deployment → where its replicas listen now."""


class Control:
    """Tells the launcher how far this replica is. Without a launcher it tells nobody. Safe to call from any thread.

    A launcher that stands still, as after Ctrl-Z, does not hold up an event loop: what is said again is dropped then, and
    the rest goes out when it hears again.
    """

    def __init__(self, fd: int | None) -> None:
        self._socket = None if fd is None else socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self._unsent = bytearray()
        """Whole lines, and the rest of one that the launcher has begun to hear."""
        self.has_launcher = fd is not None
        """Somebody hears the events."""
        self.is_replaced = False
        """Another replica has taken over, its ports included."""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def described(self, description: Mapping[str, Any]) -> None:
        self._send({"event": "described", **description})

    def progress(self, phase: str, done: float | None, total: float | None) -> None:
        """From a thread it waits for the launcher; from the event loop it is dropped where it would have to."""
        self._send({"event": "progress", "phase": phase, "done": done, "total": total}, may_drop=_is_in_loop())

    def waiting(self, handles: list[str]) -> None:
        self._send({"event": "waiting", "for": handles})

    def ready(self, addresses: tuple[str, ...]) -> None:
        self._send({"event": "ready", "addresses": addresses})

    def load(self, running: int, queued: int, wait: float) -> None:
        """Calls that run and that wait, and the seconds that a new one would wait. Said every second: it is also how the
        launcher knows that the event loop turns.
        """
        self._send({"event": "load", "running": running, "queued": queued, "wait": wait}, may_drop=True)

    def measured(self, samples: Sequence[Any]) -> None:
        """As many as fit into one line; who has more of them has thousands of methods."""
        while len(json.dumps(samples)) > LONGEST:
            samples = samples[: len(samples) // 2]
        self._send({"event": "measured", "samples": samples}, may_drop=True)

    def loaded(self, files: Iterable[str]) -> None:
        self._send({"event": "loaded", "files": list(files)})

    def failed(self, message: str) -> None:
        self._send({"event": "failed", "message": message})

    def draining(self) -> None:
        self._send({"event": "draining"})

    def finish(self) -> None:
        """Nothing more is said: return when the launcher has heard all. Not in an event loop."""
        with self._lock:
            self._flush()

    def is_over(self) -> bool:
        """Whether the launcher's end is closed already."""
        if self._socket is None:
            return False
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def listen(self, moved: Callable[[Addresses], None], gone: Callable[[], None]) -> None:
        """From now on call `moved` in the event loop with what the launcher says of addresses, and `gone` once, when its end
        closes.
        """
        if self._socket is None:
            return
        loop, control = asyncio.get_running_loop(), self._socket
        rest = b""

        def readable() -> None:
            nonlocal rest
            try:
                data = control.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                loop.remove_reader(control)
                gone()
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._heard(line, moved)

        loop.add_reader(control, readable)

    def _heard(self, line: bytes, moved: Callable[[Addresses], None]) -> None:
        """What is not understood is logged and dropped: a launcher says nothing that a replica could not go on without."""
        try:
            said = json.loads(line)
            self.is_replaced = self.is_replaced or said.get("replaced") is True
            addresses = {str(name): tuple(map(str, found)) for name, found in said.get("addresses", {}).items()}
        except (ValueError, TypeError, AttributeError):
            log.warning("the launcher said what nobody here understands: %r", line[:80])
            return
        moved(addresses)

    def _send(self, event: Mapping[str, Any], *, may_drop: bool = False) -> None:
        line = json.dumps(event).encode() + b"\n"
        if not self._lock.acquire(blocking=not may_drop):
            return
        try:
            if self.has_launcher and not (may_drop and self._unsent):
                self._unsent += line
                self._flush()
        finally:
            self._lock.release()

    def _flush(self) -> None:
        """Send all that is unsent; in an event loop as much as goes at once, and the rest later. With the lock held."""
        if self._socket is None or not self.has_launcher:
            return
        try:
            if not _is_in_loop():
                self._socket.setblocking(True)  # uvloop makes what it watches otherwise
                self._socket.sendall(self._unsent)
                self._unsent.clear()
                return
            del self._unsent[: self._socket.send(self._unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            pass
        except OSError:
            self.has_launcher = False  # `gone` deals with that
            self._unsent.clear()
        if self._unsent:
            asyncio.get_running_loop().add_writer(self._socket, self._flush_more)

    def _flush_more(self) -> None:
        """The launcher hears again."""
        if self._lock.acquire(blocking=False):  # else a thread sends it all
            try:
                self._flush()
                if self._socket is not None and not self._unsent:
                    asyncio.get_running_loop().remove_writer(self._socket)
            finally:
                self._lock.release()


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
