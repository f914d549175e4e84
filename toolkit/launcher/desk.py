"""Where a running graph takes requests: a Unix socket in its private folder, one JSON line in and one out.

    {"do": "ps"}  {"do": "wait"}  {"do": "restart", "services": ["gpt2"]}  {"do": "scale", "counts": {"gpt2": 3}}  {"do": "down"}
    {"do": "metrics"}

The answer has a `code`, which becomes the exit code of who asked, and an `error` where that is not 0. It may take long: until
what was asked for is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from toolkit.errors import NotRunningError
from toolkit.launcher.events import Asked
from toolkit.launcher.lines import parse_object
from toolkit.launcher.processes import Processes

MAX_REQUEST = 64 * 1024
MAX_CLIENTS = 64
SEND_TIMEOUT = 1.0


class Desk:
    """The launcher's end."""

    def __init__(self, path: Path, processes: Processes) -> None:
        self.path = str(path)
        self._processes = processes
        self._clients: dict[int, socket.socket] = {}
        self._heard: dict[int, bytes] = {}
        self._numbers = count()
        """Of clients. Not those of their files: the next one would have the number of one who has gone."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen(MAX_CLIENTS)
        self._socket.setblocking(False)
        processes.listen(self._socket, self._accept)

    def answer(self, client: int, answer: Mapping[str, Any]) -> None:
        """Said to who asked, who may be gone by now; that is the end of it."""
        found = self._clients.get(client)
        if found is not None:
            with contextlib.suppress(OSError):
                found.settimeout(SEND_TIMEOUT)
                found.sendall(json.dumps(answer).encode() + b"\n")
            self._drop(client)

    def close(self, code: int) -> None:
        """The graph is down: everybody who still waits is told."""
        for client in list(self._clients):
            self.answer(client, {"code": code, "ended": True})
        self._processes.forget(self._socket)
        self._socket.close()

    def _accept(self) -> Iterator[Asked]:
        with contextlib.suppress(OSError):
            client, _ = self._socket.accept()
            if len(self._clients) >= MAX_CLIENTS or not _is_ours(client):
                client.close()
                return
            client.setblocking(False)
            number = next(self._numbers)
            self._clients[number] = client
            self._heard[number] = b""
            self._processes.listen(client, lambda: self._read(number))
        yield from ()

    def _read(self, number: int) -> Iterator[Asked]:
        try:
            chunk = self._clients[number].recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self._heard[number] += chunk
        line, end, _ = self._heard[number].partition(b"\n")
        if not chunk or len(line) > MAX_REQUEST:
            self._drop(number)
        elif end:
            self._heard[number] = b""
            yield Asked(number, parse_object(line) or {})

    def _drop(self, number: int) -> None:
        client = self._clients.pop(number)
        del self._heard[number]
        self._processes.forget(client)
        client.close()


def ask(path: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of the graph at this socket. Raises NotRunningError where nobody is there any more."""
    with socket.socket(socket.AF_UNIX) as desk:
        try:
            desk.connect(path)
            desk.sendall(json.dumps(request).encode() + b"\n")
            answer = desk.makefile("rb").readline()
        except OSError:
            answer = b""
    found = parse_object(answer) or {}
    if "code" not in found:
        raise NotRunningError("the graph went down before it answered; toolkit logs says why")
    return found


def _is_ours(client: socket.socket) -> bool:
    """The folder keeps others out; this is the second lock."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.getuid())
