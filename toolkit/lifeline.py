"""A process does not outlive the one that started it, whatever it does at that moment."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Final

PR_SET_PDEATHSIG: Final = 1
STDIN: Final = 0


def die_with_parent() -> None:
    """Have the kernel end this process by SIGKILL when the thread that started it ends (prctl(2)). Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def stop_with_input() -> None:
    """Send this process SIGTERM when its standard input ends, as a pipe does when whoever holds its other end is gone."""
    threading.Thread(target=_wait_end, daemon=True, name="standard input").start()


def _wait_end() -> None:
    while os.read(STDIN, 4096):  # not sys.stdin, whose lock a process must not end with
        pass
    os.kill(os.getpid(), signal.SIGTERM)
