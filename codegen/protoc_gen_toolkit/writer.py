"""Text with indentation, and imports as data: a block asks for what it uses, and the module's head follows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

_INDENT = "    "
_UNSAFE = re.compile(
    r'\\|"(?="|\Z)'  # a backslash; quotes that would end the string
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # control characters
    "|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"  # those that reorder or break a line on the screen
)


@dataclass(frozen=True, order=True, slots=True)
class Import:
    """`import module as alias`, or `from module import name as alias`. Groups are parted by a blank line."""

    group: int
    module: str
    name: str = ""
    alias: str = ""


class Writer:
    """The body of one module, line by line."""

    def __init__(self) -> None:
        self.imports: set[Import] = set()
        self._lines: list[str] = []
        self._depth = 0

    def line(self, text: str = "") -> None:
        self._lines.append(_INDENT * self._depth + text if text else "")

    def blank(self, count: int = 1) -> None:
        """At least so many empty lines before what comes next; none at the start."""
        while self._lines and any(self._lines[-count:]):
            self._lines.append("")

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """`head`, and what is written meanwhile under it."""
        self.line(head)
        self._depth += 1
        yield
        self._depth -= 1

    def doc(self, text: str) -> None:
        """A docstring that reads `text`, whatever characters it has."""
        for line in docstring(text).split("\n"):
            self.line(line)

    def text(self) -> str:
        return "".join(f"{line}\n" for line in self._lines)


def docstring(text: str) -> str:
    """A string literal in triple quotes: `inspect.cleandoc` of its value is `text`."""
    safe = _UNSAFE.sub(_escape, text)
    return f'"""{safe}\n"""' if "\n" in safe else f'"""{safe}"""'


def import_lines(imports: set[Import]) -> list[str]:
    lines: list[str] = []
    for _, group in groupby(sorted(imports), key=lambda each: each.group):
        if lines:
            lines.append("")
        for (module, is_from), same in groupby(group, key=lambda each: (each.module, bool(each.name))):
            if is_from:
                lines.append(f"from {module} import {', '.join(f'{each.name} as {each.alias}' for each in same)}")
            else:
                lines.extend(f"import {each.module} as {each.alias}" for each in same)
    return lines


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    if character in '\\"':
        return f"\\{character}"
    return f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"
