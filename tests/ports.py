"""Ports of this machine for what a test starts later."""

from __future__ import annotations

import random
import socket
from typing import Final

from toolkit.launcher.addresses import LOOPBACK

PORTS: Final = range(20_000, 32_768)
"""The kernel gives connections, and listeners that ask for any port, those above: none of these is taken meanwhile."""
_LEFT: Final = random.sample(PORTS, len(PORTS))


def pick_port() -> int:
    """Free, and another one each time."""
    while True:
        port = _LEFT.pop()
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        return port
