"""A replica's side of the socket to its launcher: events out as JSON lines; its end means that the launcher is gone."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any


class Control:
    """Tells the launcher how far this replica is. Without a launcher it tells nobody. Safe to call from any thread."""

    def __init__(self, fd: int | None) -> None:
        self._socket = None if fd is None else socket.socket(fileno=fd)
        self._lock = threading.Lock()
        self.has_launcher = fd is not None
        """Somebody hears the events."""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def described(self, description: Mapping[str, Any]) -> None:
        self._send({"event": "described", **description})

    def progress(self, phase: str, done: float | None, total: float | None) -> None:
        self._send({"event": "progress", "phase": phase, "done": done, "total": total})

    def waiting(self, handles: list[str]) -> None:
        self._send({"event": "waiting", "for": handles})

    def ready(self, addresses: tuple[str, ...]) -> None:
        self._send({"event": "ready", "addresses": addresses})

    def failed(self, message: str) -> None:
        self._send({"event": "failed", "message": message})

    def draining(self) -> None:
        self._send({"event": "draining"})

    def on_end(self, gone: Callable[[], None]) -> None:
        """Call `gone` once, in the event loop, when the launcher's end closes."""
        if self._socket is None:
            return
        loop, control = asyncio.get_running_loop(), self._socket

        def readable() -> None:
            try:
                data = control.recv(4096, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                loop.remove_reader(control)
                gone()

        loop.add_reader(control, readable)

    def _send(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event).encode() + b"\n"
        with self._lock:  # a long line may go out in parts
            if self._socket is not None and self.has_launcher:
                try:
                    self._socket.sendall(line)
                except OSError:
                    self.has_launcher = False  # on_end deals with that
