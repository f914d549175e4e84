"""Drives real replicas that run alone: `python -m toolkit.replica`, without a launcher."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.up import environ

COMMAND = (sys.executable, "-m", "toolkit.replica")


@dataclass
class Alone:
    """A replica under way. All that it has said so far is in `said`."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)

    def wait_line(self, part: str) -> str:
        """The first line from here on that holds `part`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if part in line:
                return line
        raise AssertionError(f"{part!r} was never said; exit code {self.process.wait()}:\n" + "\n".join(self.said))

    def wait_ready(self) -> tuple[str, ...]:
        """Its addresses."""
        found = re.search(r" serves \S+ on (.+)", self.wait_line(" serves "))
        assert found is not None
        return tuple(found.group(1).strip().split(", "))

    def wait_exit(self) -> int:
        """Its exit code; `said` is whole then, and nothing that it started is left."""
        assert self.process.stderr is not None
        self.said += self.process.stderr.read().splitlines()
        code = self.process.wait()
        assert not is_running(self.process.pid)
        return code

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said if line.startswith("error: ")]


def is_running(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def alone(
    service: str,
    *options: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[Alone]:
    process = subprocess.Popen(
        [*COMMAND, service, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environ(**(env or {})),
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        yield Alone(process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()
