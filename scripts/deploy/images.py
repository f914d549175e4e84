"""The image, from the exported Dockerfile and wheels that lie ready."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import toolkit
from scripts.chaos_cases.case import Row, say
from scripts.deploy import project
from scripts.deploy.commands import StepError, command, docker
from scripts.deploy.engine import BASE, CACHE, RUNTIME, NoEngineError

MB = 1e6
CHUNK = 1 << 20


def wheels(python: str) -> Path:
    """A folder with the toolkit as it is now, and all that it needs, for this version of Python."""
    described = b"".join((project.ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    folder = CACHE / f"wheels-{python}-{sha256(described).hexdigest()[:16]}"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    ours = ("wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(project.ROOT))
    command(*pip, *ours, timeout=120)
    stamp = folder / "complete"
    if not stamp.exists():
        say("pip download (once)")
        which = (
            "--only-binary=:all:",
            f"--python-version={python}",
            f"--constraint={project.ROOT / 'constraints.txt'}",
        )
        where = (f"--find-links={folder}", f"--dest={folder}")
        try:
            command(*pip, "download", *which, *where, f"grpc-model-toolkit=={toolkit.__version__}", timeout=300)
        except StepError as error:
            raise NoEngineError(f"no wheels for it: {error}") from None
        stamp.touch()
    return folder


async def run(folder: Path) -> AsyncIterator[Row]:
    """image: built without a network, and once more after a change of code"""
    began = time.monotonic()
    shop = project.make(folder)
    await project.build(shop, "latest")
    first = time.monotonic() - began
    size = await unpacked(f"{project.IMAGE}:latest")
    ours = size - await unpacked(RUNTIME)
    measured = {"ours_MB": ours, "on_a_whole_Debian_MB": ours + await unpacked(BASE), "pulled_MB": packed(folder)}
    yield Row("image", "without torch, unpacked", size, "<=", 200, "MB", {**measured, "first_build_s": first})
    project.set_version(shop, 2)
    began = time.monotonic()
    await project.build(shop, "2")
    yield Row("image", "built again after a change of code", time.monotonic() - began, "<=", 10, "s")
    project.set_version(shop, 1)


async def unpacked(image: str) -> float:
    return int(json.loads(await docker("image", "inspect", image))[0]["Size"]) / MB


def packed(folder: Path) -> float:
    """Compressed, as registries keep images."""
    squeeze = zlib.compressobj(1)
    total = 0
    with subprocess.Popen(["docker", "save", f"{project.IMAGE}:latest"], stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        while chunk := saving.stdout.read(CHUNK):
            total += len(squeeze.compress(chunk))
    return (total + len(squeeze.flush())) / MB
