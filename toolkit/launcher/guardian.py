"""What is left of a launcher that was killed: a small process that ends everything the launcher started.

A replica dies with its launcher by itself; what it started in turn may not. All of them carry the run's mark in their
environment, which no process outside it has: so nothing else is ever touched. Linux alone shows environments.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "MODEL_TOOLKIT_RUN"
"""Environment variable whose value is the run's own. It does not begin as those of a `ReplicaSpec` do: these are kept from
the programs that a replica starts."""
_ROUND = 0.02
_ROUNDS = 100
_PATIENCE = 5.0


@contextlib.contextmanager
def guarded(mark: str, folder: Path) -> Iterator[None]:
    """At the end of the block, and of this process whatever ends it, no process with this mark is left, and no `folder`."""
    if sys.platform != "linux":
        yield
        return
    command = (sys.executable, "-I", "-S", __file__, mark, str(folder))
    guardian = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    assert guardian.stdin is not None
    try:
        yield
    finally:
        guardian.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guardian.wait(_PATIENCE)


def end_all(mark: str) -> None:
    """Kill every process with this mark, and those that they start meanwhile. Whoever is just being started shows no
    environment for a moment, so that none counts only when it is seen twice.
    """
    none_before = False
    for _ in range(_ROUNDS):
        found = list(find_marked(mark))
        if not found and none_before:
            return
        none_before = not found
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_ROUND)


def find_marked(mark: str) -> Iterator[int]:
    wanted = f"{MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environ:
                if wanted in environ.read().split(b"\0"):
                    yield int(name)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, mark, folder = sys.argv
    sys.stdin.buffer.read()  # ends when the launcher does
    end_all(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
