"""A text that comes in pieces, cut into sentences as soon as each is complete."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARACTERS: Final = 400
"""A sentence that does not end is cut here."""
_END: Final = re.compile(r"[.!?…][\"'”’)\]]*\s+|\n\s*")
"""What follows the mark must have begun: a full stop at the very end may be half of `3.14`."""


class Sentences:
    """`add` what comes and get the sentences that are complete; then `rest`. All of them together are the text, unchanged."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, piece: str) -> list[str]:
        self._text += piece
        found = []
        while end := self._end():
            found.append(self._text[:end])
            self._text = self._text[end:]
        return found

    def rest(self) -> list[str]:
        """What has no end, when nothing more comes."""
        return [self._text] if self._text else []

    def _end(self) -> int:
        """Where the first sentence ends, 0 if that is not known yet. White space belongs to the sentence before it."""
        start = len(self._text) - len(self._text.lstrip())
        for mark in _END.finditer(self._text, start):
            if mark.end() < len(self._text):
                return min(mark.end(), MAX_CHARACTERS)
        return MAX_CHARACTERS if len(self._text) > MAX_CHARACTERS else 0
