"""Secrets live in files: bearer tokens and PEM files, read with care, and read again when they change.

What is wrong with one is a ValueError of one sentence, which never holds the secret itself.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

log = logging.getLogger("toolkit")

MAX_BYTES: Final = 1 << 20
SETTLED: Final = 1.0
"""Seconds after its last change until a file's time stamp tells the next change for sure: clocks of file systems are coarse."""
_TOKEN: Final = re.compile(rb"[A-Za-z0-9._~+/-]{16,4096}=*")
"""`b64token` of https://www.rfc-editor.org/rfc/rfc6750#section-2.1, long enough that nobody guesses it."""
_SCHEME: Final = "Bearer "

T = TypeVar("T")
Stamp = tuple[tuple[int, int, int], ...]


class Watched(Generic[T]):
    """A value made of files. It is made again when one of them changes, and kept where that fails: rotation needs no restart.

    `read` gives a file's bytes, `make` the value. Both raise ValueError, here at once and later into the log.
    """

    def __init__(self, paths: Sequence[str], make: Callable[[tuple[bytes, ...]], T]) -> None:
        self._paths = tuple(paths)
        self._make = make
        self._complaint = ""
        self._stamp = _stamp(self._paths)
        self._data = tuple(map(read_file, self._paths))
        self._value = make(self._data)

    def current(self) -> T:
        """The value of the files as they are now, the very same object as before where they have not changed."""
        try:
            stamp = _stamp(self._paths)
            if stamp != self._stamp or not _is_settled(stamp):
                data = tuple(map(read_file, self._paths))
                if data != self._data:
                    self._value, self._data = self._make(data), data
                self._stamp = stamp
            self._complaint = ""
        except ValueError as error:
            self._complain(str(error))
        return self._value

    def _complain(self, sentence: str) -> None:
        if sentence != self._complaint:
            self._complaint = sentence
            log.warning("%s; what was read before stays in use", sentence)


def _stamp(paths: Iterable[str]) -> Stamp:
    try:
        return tuple((found.st_mtime_ns, found.st_size, found.st_ino) for found in map(os.stat, paths))
    except OSError as error:
        raise ValueError(_unreadable(error)) from None


def _is_settled(stamp: Stamp) -> bool:
    now = time.time_ns()
    return all(now - mtime > SETTLED * 1e9 for mtime, _, _ in stamp)


def _unreadable(error: OSError) -> str:
    return f"{error.filename}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"


def read_file(path: str) -> bytes:
    """The bytes of a small file. Raises ValueError."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(_unreadable(error)) from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES >> 20} MiB, which no certificate, key or token is")
    return data


def check_private(path: str) -> None:
    """Raise ValueError where a secret of ours is open to other users; warn where it is somebody else's, whom we cannot ask."""
    try:
        found = Path(path).stat()
    except OSError as error:
        raise ValueError(_unreadable(error)) from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path}: not a file")
    if hasattr(os, "geteuid") and found.st_uid == os.geteuid():
        if found.st_mode & 0o077:
            raise ValueError(f"{path}: other users can read this secret; run: chmod 600 {path}")
    elif found.st_mode & 0o007:
        log.warning("%s: every user can read this secret; let its owner run: chmod 400 %s", path, path)


def watch_tokens(path: str) -> Watched[tuple[bytes, ...]]:
    """The tokens in a file, one a line: a server accepts each of them, a client sends the first."""
    check_private(path)
    return Watched((path,), lambda data: _parse_tokens(path, data[0]))


def _parse_tokens(path: str, data: bytes) -> tuple[bytes, ...]:
    lines = [(number, line.strip()) for number, line in enumerate(data.splitlines(), 1)]
    tokens = [(number, line) for number, line in lines if line]
    for number, token in tokens:
        if not _TOKEN.fullmatch(token):
            raise ValueError(
                f"{path}: line {number} is no token, which is 16 characters or more of A-Z a-z 0-9 - . _ ~ + / =; "
                f"make one: openssl rand -hex 32 > {path}"
            )
    if not tokens:
        raise ValueError(f"{path}: holds no token; make one: openssl rand -hex 32 > {path}")
    return tuple(token for _, token in tokens)


def bearer(token: bytes) -> str:
    """The value of the metadata `authorization`."""
    return _SCHEME + token.decode("ascii")


def find_refusal(value: str | bytes | None, tokens: Iterable[bytes]) -> str | None:
    """Why this value of the metadata `authorization` is refused; None where it is accepted. How near a wrong token comes
    to a right one does not show in the time that this takes.
    """
    if value is None:
        return (
            "a token is needed: send it as the metadata `authorization: Bearer TOKEN` (toolkit call: --token-file FILE)"
        )
    data = value.encode("utf-8", "replace") if isinstance(value, str) else value
    scheme, sent = data[: len(_SCHEME)], data[len(_SCHEME) :].strip()
    matches = [hmac.compare_digest(sent, token) for token in tokens]
    if scheme.lower() != _SCHEME.lower().encode() or not any(matches):
        return "this token is not accepted; it may have been replaced by a new one"
    return None
