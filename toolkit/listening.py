"""Can a replica listen there? Asked before gRPC is, whose own answer is a bare failure and a line on standard error."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final

from toolkit.errors import StartError

PROBE_TIMEOUT: Final = 1.0
"""Seconds that a socket's holder may take to show itself."""
_MEANINGS: Final = {
    errno.EADDRINUSE: "it is taken; stop whoever holds it, or name another port",
    errno.EADDRNOTAVAIL: "it is no address of this machine; 127.0.0.1 is, and 0.0.0.0 stands for all",
    errno.EACCES: "this user may not; ports from 1024 on are open to everybody",
}


def check_free(address: str) -> None:
    """Raise StartError, one sentence, where nobody can listen on `address` now."""
    trouble = _socket_trouble(address.removeprefix("unix:")) if address.startswith("unix:") else _port_trouble(address)
    if trouble is not None:
        raise StartError(f"cannot listen on {address}: {trouble}")


def _socket_trouble(path: str) -> str | None:
    folder = Path(path).parent
    if not folder.is_dir():
        return f"there is no folder {folder}; make it, or name another path"
    if not os.access(folder, os.W_OK):
        return f"this user may not write in {folder}; name another path"
    if Path(path).exists() and not Path(path).is_socket():
        return "there is a file that is no socket; name another path"
    if _answers(path):  # gRPC would take it over
        return "somebody does; stop them, or name another path"
    return None


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_TIMEOUT)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def _port_trouble(address: str) -> str | None:
    """What keeps every address that the host has from being bound; a host may have several."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"there is no host {host} ({error.strerror})"
    troubles = [_bind_trouble(family, where) for family, _, _, _, where in found]
    return None if None in troubles else troubles[0]


def _bind_trouble(family: socket.AddressFamily, where: object) -> str | None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)  # type: ignore[arg-type]  # as getaddrinfo gave it
    except OSError as error:
        return _MEANINGS.get(error.errno or 0, str(error.strerror))
    return None
