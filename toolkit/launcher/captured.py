"""Commands that are run to their end: what they say is kept, or is an answer to what they were asked."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from toolkit.launcher.lines import parse_object

_CHUNK = 65536


def run_captured(
    command: tuple[str, ...], folder: Path, environ: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Whatever its exit code. Raises subprocess.TimeoutExpired after `timeout` seconds, when it has been killed."""
    return subprocess.run(
        command,
        cwd=folder,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def asked(
    command: Sequence[str],
    folder: Path,
    question: object,
    *,
    environ: Mapping[str, str] | None = None,
    complaints: IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that was told `question` as JSON, and whose standard output is lines of JSON. The block ends when it does;
    where the block is left early, by Ctrl-C too, it is killed with all that it started.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        env=None if environ is None else dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        start_new_session=True,  # Ctrl-C is ours to deal with
    ) as process:
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(json.dumps(question).encode())
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def answers(process: subprocess.Popen[bytes], timeout: float | None = None) -> Iterator[Mapping[str, Any]]:
    """Its lines, as they come; what is no JSON object is left out. Raises TimeoutError after `timeout` seconds."""
    assert process.stdout is not None
    end = None if timeout is None else time.monotonic() + timeout
    rest = b""
    while select.select([process.stdout], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
        chunk = os.read(process.stdout.fileno(), _CHUNK)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, map(parse_object, lines))
    raise TimeoutError
