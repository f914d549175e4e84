"""Folders that are expensive to make: made once, by one process, and never seen half done."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.errors import StartError
from toolkit.service import progress

VARIABLE = "MODEL_CACHE"
"""Environment variable: the folder of the cache, instead of the user's own."""
PATIENCE = 600.0
"""Seconds to wait for another process that is making the same folder."""
MARKER = "complete.json"


def cache_folder() -> Path:
    """`$MODEL_CACHE`, or `grpc-model-toolkit/models` in the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "grpc-model-toolkit" / "models"


def made_once(folder: Path, make: Callable[[Path], None], *, patience: float = PATIENCE) -> Path:
    """`folder`, after `make(empty folder)` has filled it once; later calls, in any process, find it and return at once.

    Raises StartError when it cannot be written, or when another process keeps it locked for longer than `patience`.
    """
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder, patience):
            if not is_complete(folder):
                _make(folder, make)
    except OSError as error:
        raise StartError(
            f"cannot write {folder}: {error.strerror or error}; "
            f"make room there, or name another folder with the environment variable {VARIABLE}"
        ) from error
    return folder


def is_complete(folder: Path) -> bool:
    """Every file is there with its full length. Fast: nothing is read."""
    files = _marked(folder)
    return files is not None and all(_length(folder / name) == length for name, (length, _) in files.items())


def is_intact(folder: Path) -> bool:
    """Every file is there with its full content. Reads all of it."""
    files = _marked(folder)
    return (
        files is not None
        and is_complete(folder)
        and all(_sum(folder / name) == sum_ for name, (_, sum_) in files.items())
    )


def _lock(folder: Path, patience: float) -> FileLock:
    lock = FileLock(folder.with_name(folder.name + ".lock"), timeout=patience)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"wait for another process that makes {folder.name}")
        try:
            lock.acquire()
        except Timeout:
            raise StartError(
                f"another process has kept {lock.lock_file} locked for {patience:.0f} s; end it and try again"
            ) from None
    return lock


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    partial = folder.with_name(
        folder.name + ".partial"
    )  # one name is enough under the lock, and a killed process leaves one
    for old in (partial, folder):
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir()
    try:
        make(partial)
        files = {file.name: (file.stat().st_size, _sum(file)) for file in sorted(partial.iterdir())}
        (partial / MARKER).write_text(json.dumps(files, indent=2))
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _marked(folder: Path) -> dict[str, tuple[int, str]] | None:
    try:
        found = json.loads((folder / MARKER).read_text())
        return {str(name): (int(length), str(sum_)) for name, (length, sum_) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _length(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _sum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
