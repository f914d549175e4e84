"""Is the replica that listens here ready? `python -S -E healthcheck.py [HOST:PORT]` asks `grpc.health.v1` and exits 0 or 1.

A file of its own, of the standard library alone: a container starts it every few seconds, and importing grpc would cost a
fifth of a second of CPU each time. It speaks just enough HTTP/2 for one call.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
from collections.abc import Iterator, Mapping

TIMEOUT = 2.0
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK, END_STREAM, END_HEADERS, PADDED = 1, 1, 4, 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_MESSAGE = b"\0\0\0\0\0"
SERVING = b"\0\0\0\0\2\x08\x01"
"""grpc.health.v1.HealthCheckResponse(status=SERVING), in the frame that gRPC puts around a message."""
LARGEST_FRAME = 1 << 14


def is_serving(address: str, *, context: ssl.SSLContext | None = None, timeout: float = TIMEOUT) -> bool:
    """Whether what listens at `HOST:PORT` or `unix:/path` says SERVING. Raises OSError where nobody answers in HTTP/2."""
    with _connect(address, timeout) as plain:
        connection = plain if context is None else context.wrap_socket(plain)
        with connection:
            connection.sendall(PREFACE + _frame(SETTINGS) + _frame(HEADERS, END_HEADERS, 1, _headers(address)))
            connection.sendall(_frame(DATA, END_STREAM, 1, NO_MESSAGE))
            return _reply(connection) == SERVING


def _connect(address: str, timeout: float) -> socket.socket:
    if not address.startswith("unix:"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host.strip("[]"), int(port)), timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    connection.connect(address.removeprefix("unix:"))
    return connection


def _reply(connection: socket.socket) -> bytes:
    """The data of the one stream."""
    found = b""
    for kind, flags, stream, payload in _frames(connection):
        if kind == SETTINGS and not flags & ACK:
            connection.sendall(_frame(SETTINGS, ACK))
        elif kind == PING and not flags & ACK:
            connection.sendall(_frame(PING, ACK, 0, payload))
        elif kind in (GOAWAY, RST_STREAM):
            break
        elif stream == 1 and kind == DATA:
            found += payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
        if stream == 1 and kind in (DATA, HEADERS) and flags & END_STREAM:
            break
    return found


def _frames(connection: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    with connection.makefile("rb") as stream:
        while len(head := stream.read(9)) == 9:
            length = int.from_bytes(head[:3], "big")
            if length > LARGEST_FRAME:
                raise OSError("the answer is not HTTP/2")
            yield head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, stream.read(length)


def _frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(address: str) -> bytes:
    """HPACK, each field a literal that is not indexed (RFC 7541, 6.2.2)."""
    authority = "localhost" if address.startswith("unix:") else address
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/grpc.health.v1.Health/Check",
        ":authority": authority,
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    data = text.encode()[:126]
    return bytes((len(data),)) + data


def tls_context(incoming: Mapping[str, str]) -> ssl.SSLContext | None:
    """For a replica that speaks TLS. It is on the other side of the loopback: whose certificate it shows is no question."""
    if not incoming.get("cert"):
        return None
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if incoming.get("caller_ca"):
        context.load_cert_chain(incoming["cert"], incoming["key"])
    return context


def main() -> int:
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"
    try:
        context = tls_context(json.loads(os.environ.get("TOOLKIT_INCOMING", "{}")))
        if is_serving(address, context=context):
            return 0
        sys.stdout.write(f"{address} is not ready\n")
    except (OSError, ValueError) as error:
        sys.stdout.write(f"{address}: {error}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
