"""`/metrics` over HTTP, in a thread of its own: one request at a time, each with its limit, and nothing else is served."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from toolkit.errors import StartError
from toolkit.listening import check_free
from toolkit.metrics import CONTENT_TYPE

log = logging.getLogger("toolkit")
LIMIT: Final = 2.0
"""Seconds that one request may take to come, and its answer to go."""
MAX_REQUEST: Final = 8192
WAITING: Final = 16
"""Connections that wait for their turn."""


@contextmanager
def served(address: str, text: Callable[[], str]) -> Iterator[str]:
    """Within the block, `http://ADDRESS/metrics` is what `text` returns, which is called in another thread. Yields the address
    with its real port. Raises StartError where it is taken.
    """
    check_free(address)
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        listener = socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=WAITING
        )
    except OSError as error:
        raise StartError(f"cannot listen on {address}: {error.strerror}") from None
    threading.Thread(target=_serve, args=(listener, text), daemon=True, name="metrics").start()
    try:
        yield f"{address.rpartition(':')[0]}:{listener.getsockname()[1]}"
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # ends the thread's `accept`
        listener.close()


def _serve(listener: socket.socket, text: Callable[[], str]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            if listener.fileno() < 0 or not _is_listening(listener):
                return
            time.sleep(0.1)  # out of file descriptors, for example
            continue
        with connection, suppress(OSError):
            connection.settimeout(LIMIT)
            connection.sendall(_answer(_request_line(connection), text))


def _request_line(connection: socket.socket) -> bytes:
    """What is asked for; all of the request is read, else closing would cut off the answer."""
    until, request = time.monotonic() + LIMIT, b""
    while b"\r\n\r\n" not in request and len(request) < MAX_REQUEST:
        connection.settimeout(max(until - time.monotonic(), 0.001))
        chunk = connection.recv(MAX_REQUEST)
        if not chunk:
            break
        request += chunk
    connection.settimeout(LIMIT)
    return request.partition(b"\r\n")[0]


def _answer(line: bytes, text: Callable[[], str]) -> bytes:
    match line.split(b" "):
        case [b"GET", path, _] if path.partition(b"?")[0] == b"/metrics":
            try:
                return _response("200 OK", text(), CONTENT_TYPE)
            except Exception as error:
                log.error("the metrics cannot be told", exc_info=error)
                return _response("500 Internal Server Error", "see the log\n")
        case [b"GET", _, _]:
            return _response("404 Not Found", "see /metrics\n")
    return _response("405 Method Not Allowed", "GET /metrics\n")


def _response(status: str, text: str, kind: str = "text/plain; charset=utf-8") -> bytes:
    body = text.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def _is_listening(listener: socket.socket) -> bool:
    try:
        return bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
