"""The pages of docs/ as blocks to run. What a block is follows from its fence alone:

| fence | what becomes of it |
|---|---|
| `sh` | run; the folder that it ends in is that of the next block |
| `sh title="first terminal"` | started, and left running until the page's next one, or its end; then Ctrl-C |
| `python` | run, `await` included; the blocks of a page share their names |
| any, `title="PATH"` | written to that file; or, where the project has it, an excerpt: its paragraphs must stand there |
| `yaml` | a graph file, or laid over the page's graph.yaml: must be right |
| `text` below a block that runs | what that prints; `…` stands for anything in a line, and alone for any lines |
| `console`, `text`, `mermaid` elsewhere | shown only |

A comment `<!-- not run: REASON -->` above a block takes it out. A page with `<!-- runs in: the repository -->` has our services;
every other one begins in an empty folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
FIRST_TERMINAL: Final = "first terminal"
SHOWN: Final = frozenset({"console", "text", "mermaid"})
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)(?P<rest>.*)")
_TITLE = re.compile(r'title="([^"]+)"')
_REASON = re.compile(r"<!-- not run: (.+) -->")
_IN_REPOSITORY = "<!-- runs in: the repository -->"


@dataclass(frozen=True, kw_only=True)
class Block:
    line: int
    language: str
    title: str
    text: str
    reason: str
    """Why it is not run."""
    expected: str | None = None
    """What it prints, where the page says so."""


@dataclass(frozen=True, kw_only=True)
class Page:
    path: Path
    in_repository: bool
    blocks: tuple[Block, ...]

    @property
    def runs(self) -> bool:
        return any(not block.reason for block in self.blocks)


def read_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    blocks = tuple(_with_expectations(list(_blocks(text.splitlines()))))
    return Page(path=path, in_repository=_IN_REPOSITORY in text, blocks=blocks)


def _blocks(lines: list[str]) -> Iterator[Block]:
    reason, start = "", 0
    while start < len(lines):
        fence, comment = _FENCE.fullmatch(lines[start]), _REASON.fullmatch(lines[start].strip())
        if fence is None:
            reason = comment[1] if comment else reason if not lines[start].strip() else ""
            start += 1
            continue
        closing = fence["indent"] + "```"
        end = lines.index(closing, start + 1)
        title = _TITLE.search(fence["rest"])
        text = "".join(line.removeprefix(fence["indent"]) + "\n" for line in lines[start + 1 : end])
        yield Block(
            line=start + 1, language=fence["language"], title=title[1] if title else "", text=text, reason=reason
        )
        reason, start = "", end + 1


def _with_expectations(blocks: list[Block]) -> Iterator[Block]:
    """A `text` right below what runs is what that prints; both are one."""
    for block, below in zip_longest(blocks, blocks[1:]):
        if block.language in SHOWN:
            continue
        is_expected = below is not None and below.language == "text" and not below.title and not below.reason
        expected = below.text if is_expected and below is not None else None
        yield Block(**{**vars(block), "expected": expected})


def fits(expected: str, printed: str) -> bool:
    """Is this what a page says? `…` stands for anything in a line, and alone for any lines."""
    parts = [r"(?:.*\n)*?" if line.strip() == "…" else _line(line) for line in expected.rstrip().splitlines()]
    return re.fullmatch("".join(parts), printed.rstrip() + "\n") is not None


def _line(line: str) -> str:
    return ".*?".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"


def is_excerpt(text: str, source: str) -> bool:
    """Does each paragraph of `text` stand in `source`, however deep it is indented there? Lines of `...` are left out."""
    bare = [line.strip() for line in source.splitlines()]
    paragraphs = re.split(r"\n\s*(?:\.\.\.|# \.\.\.)?\s*\n", text.strip("\n"))
    return all(_stands(paragraph, bare) for paragraph in paragraphs if paragraph.strip())


def _stands(paragraph: str, lines: list[str]) -> bool:
    wanted = [line.strip() for line in paragraph.splitlines()]
    return any(lines[start : start + len(wanted)] == wanted for start in range(len(lines) - len(wanted) + 1))
