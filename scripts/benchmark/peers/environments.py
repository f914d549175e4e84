"""The peers' own environments: made once, outside the checkout."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

INSTALL_TIMEOUT: Final = 900.0


class UnavailableError(Exception):
    """Cannot be measured here; the text says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    package: str
    version: str
    extra: str = ""

    @property
    def title(self) -> str:
        return f"{self.name} {self.version}"


BENTOML: Final = Peer("BentoML", "bentoml", "1.4.39")
RAY: Final = Peer("Ray Serve", "ray", "2.60.0", extra="[serve]")


def home() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "grpc-model-toolkit" / "peers"


async def environment(peer: Peer) -> Path:
    """The Python of an environment that holds the peer, and numpy as we have it. Raises UnavailableError with pip's reason."""
    folder = home() / f"{peer.package}-{peer.version}"
    python = folder / "bin" / "python"
    made = folder / "made"
    if made.exists():
        return python
    say(f"making an environment for {peer.title} in {folder} (a minute or two, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    await _run(sys.executable, "-m", "venv", "--clear", str(folder))
    wanted = f"{peer.package}{peer.extra}=={peer.version}"
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:")
    await _run(*pip, wanted, f"numpy=={np.__version__}")
    made.touch()
    say(f"{peer.title} is installed")
    return python


async def _run(*command: str) -> None:
    out = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=asyncio.subprocess.STDOUT)
    try:
        async with asyncio.timeout(INSTALL_TIMEOUT):
            said, _ = await process.communicate()
    except TimeoutError:
        raise UnavailableError(f"pip was not done after {INSTALL_TIMEOUT:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines or ["no word of why"]
        raise UnavailableError(errors[-1].removeprefix("ERROR: "))


def say(text: str) -> None:
    sys.stderr.write(f"peers: {text}\n")
    sys.stderr.flush()
