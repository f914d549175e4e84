"""What other processes say, line by line: text that a replica prints, and JSON. Pure, bounded, and nothing in it can raise."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MAX_LINE_BYTES = 256 * 1024
_END = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)
# A \r that comes last waits: a \n may follow it.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROLS = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) != "\t"}


class LineSplitter:
    r"""Feed it chunks; get `(text, is_transient)`. A line that ends in `\r` alone is transient: the next overwrites it.

    A line longer than `limit` comes in pieces. Invalid UTF-8 shows as `\xNN`; escapes and controls are taken out.
    """

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bool]]:
        text, start = self._rest + chunk, 0
        for end in _END.finditer(text):
            is_transient = end[0] == b"\r"
            if end.start() > start or not is_transient:
                yield from self._pieces(text[start : end.start()], is_transient=is_transient)
            start = end.end()
        while len(text) - start > self._limit:
            yield _decode(text[start : start + self._limit]), False
            start += self._limit
        self._rest = text[start:]

    def finish(self) -> Iterator[tuple[str, bool]]:
        """What came after the last line's end."""
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        if rest:
            yield from self._pieces(rest, is_transient=False)

    def _pieces(self, line: bytes, *, is_transient: bool) -> Iterator[tuple[str, bool]]:
        for start in range(0, max(1, len(line)), self._limit):
            yield _decode(line[start : start + self._limit]), is_transient


def parse_object(line: str | bytes) -> dict[str, Any] | None:
    """A line that should be a JSON object; None where it is something else."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _decode(line: bytes) -> str:
    return _ESCAPES.sub("", line.decode("utf-8", "backslashreplace")).translate(_CONTROLS)
