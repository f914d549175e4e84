"""A command that is run to its end, with what it says kept."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


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
