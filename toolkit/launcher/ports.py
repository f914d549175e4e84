"""The TCP ports of a graph: held by the launcher for as long as it runs, so that they are free for every replica in turn.

A port that is bound and not listened on takes no connections. Linux lets sockets of one user share it where all of them say
SO_REUSEPORT; so a replica and the one that replaces it can listen side by side, and nobody else can come between.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import ConflictError

_REASONS = {
    errno.EADDRNOTAVAIL: "it is no address of this machine; 127.0.0.1 is, and 0.0.0.0 stands for all",
    errno.EACCES: "this user may not; ports from 1024 on are open to everybody",
}
_LISTEN = "0A"
"""TCP_LISTEN as /proc/net/tcp writes it."""


@contextlib.contextmanager
def held_ports(places: Iterable[tuple[str, str, int]]) -> Iterator[None]:
    """Hold these ports: (where the file says so, host, port). Raises ConflictError, a line for each that is not free."""
    with contextlib.ExitStack() as held:
        problems = []
        for where, host, port in places:
            try:
                _hold(host, port, held)
            except OSError as error:
                problems.append(f"{where}: {_tell(error, host, port)}")
        if problems:
            raise ConflictError("\n".join(problems))
        yield


def _hold(host: str, port: int, held: contextlib.ExitStack) -> None:
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
        own = _socket(family, held)
        try:
            own.bind(address)  # alone: not even somebody who shares it, and does not listen yet, may have it
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _bind_over_what_lingers(own, address, _socket(family, held))
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _bind_over_what_lingers(own: socket.socket, address: Any, other: socket.socket) -> None:
    """Connections of whoever had the port last do not count (TIME_WAIT). From then on SO_REUSEADDR helps nobody else past `own`:
    Linux remembers for a port that all who have it would allow that, until one comes that does not.
    """
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(address)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    with contextlib.suppress(OSError):  # what lingers is of somebody who did not share
        other.bind(address)


def _socket(family: int, held: contextlib.ExitStack) -> socket.socket:
    found = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    if family == socket.AF_INET6:
        found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return found


def _tell(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror):
        return f"there is no host {host} ({error.strerror})"
    if error.errno != errno.EADDRINUSE:
        return f"cannot listen on {host}:{port}: {_REASONS.get(error.errno or 0, error.strerror)}"
    holder = find_holder(port)
    who = f"by {holder}" if holder else "by another user's process, or by a graph whose entry does not listen yet"
    return f"port {port} is taken {who}; stop that, or name another port"


def find_holder(port: int) -> str | None:
    """`process 4711 (python server.py)`: who listens on a TCP port, where this user may know."""
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(Path("/proc/net") / table, port)}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for fd in (folder / "fd").iterdir():
                if _socket_inode(fd) in inodes:
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                    return f"process {folder.name} ({command[:80]})"
    return None


def _listening(table: Path, port: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in table.read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                yield rest[5]


def _socket_inode(fd: Path) -> str | None:
    try:
        target = os.readlink(fd)
    except OSError:
        return None
    return target.removeprefix("socket:[").removesuffix("]") if target.startswith("socket:[") else None
