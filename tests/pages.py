"""The pages of docs/ as blocks to run. What a block is follows from its fence alone:

| fence | what becomes of it |
|---|---|
| `sh` | run; the folder that it ends in is that of the next block |
| `sh title="first terminal"` | started, and left running until the page's next one, or its end; then Ctrl-C |
| `python` | run, `await` included; the blocks of a page share their names |
| any, `title="PATH"` | written to that file; or, where the project has it, an excerpt: its paragraphs must stand there |
| `yaml` | a graph file, or laid over the page's graph.yaml: must be right |
| `text`, `mermaid` below a block that runs | what that prints; `…` stands for anything in a line, and alone for any lines |
| `console`, `text`, `mermaid` elsewhere | shown only |

A comment `<!-- not run: REASON -->` above a block takes it out, and `<!-- other numbers elsewhere -->` lets any number stand for
one. A page with `<!-- runs in: the repository -->` has our services; every other one begins in an empty folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
FIRST_TERMINAL: Final = "first terminal"
PRINTED: Final = frozenset({"text", "mermaid"})
SHOWN: Final = PRINTED | {"console"}
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)(?P<rest>.*)")
_TITLE = re.compile(r'title="([^"]+)"')
_COMMENT = re.compile(r"<!-- (?:not run: (?P<reason>.+)|(?P<numbers>other numbers elsewhere)) -->")
_NUMBER = re.compile(r"(?:\\ )*\d+(?:\\\.\d+)?")  # as re.escape leaves it, with the spaces that align it
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
    any_numbers: bool = False
    """Of what is expected."""


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
    comment, start = None, 0
    while start < len(lines):
        fence = _FENCE.fullmatch(lines[start])
        if fence is None:
            comment = _COMMENT.fullmatch(lines[start].strip()) if lines[start].strip() else comment
            start += 1
            continue
        closing = fence["indent"] + "```"
        end = lines.index(closing, start + 1)
        title = _TITLE.search(fence["rest"])
        text = "".join(line.removeprefix(fence["indent"]) + "\n" for line in lines[start + 1 : end])
        yield Block(
            line=start + 1,
            language=fence["language"],
            title=title[1] if title else "",
            text=text,
            reason=(comment["reason"] or "") if comment else "",
            any_numbers=comment is not None and comment["numbers"] is not None,
        )
        comment, start = None, end + 1


def _with_expectations(blocks: list[Block]) -> Iterator[Block]:
    """A `text` right below what runs is what that prints; both are one."""
    for block, below in zip_longest(blocks, blocks[1:]):
        if block.language in SHOWN:
            continue
        if below is None or below.language not in PRINTED or below.title or below.reason:
            yield block
        else:
            yield replace(block, expected=below.text, any_numbers=below.any_numbers)


def fits(expected: str, printed: str, *, any_numbers: bool = False) -> bool:
    """Is this what a page says? `…` stands for anything in a line, and alone for any lines."""
    lines = expected.rstrip().splitlines()
    parts = [r"(?:.*\n)*?" if line.strip() == "…" else _line(line, any_numbers) for line in lines]
    return re.fullmatch("".join(parts), printed.rstrip() + "\n") is not None


def _line(line: str, any_numbers: bool) -> str:
    pattern = ".*?".join(map(re.escape, line.rstrip().split("…"))) + r"[ \t]*\n"
    return _NUMBER.sub(lambda _: r" *-?\d+(?:\.\d+)?", pattern) if any_numbers else pattern


def is_excerpt(text: str, source: str) -> bool:
    """Does each paragraph of `text` stand in `source`, however deep it is indented there? Lines of `...` are left out."""
    bare = [line.strip() for line in source.splitlines()]
    paragraphs = re.split(r"\n\s*(?:\.\.\.|# \.\.\.)?\s*\n", text.strip("\n"))
    return all(_stands(paragraph, bare) for paragraph in paragraphs if paragraph.strip())


def _stands(paragraph: str, lines: list[str]) -> bool:
    wanted = [line.strip() for line in paragraph.splitlines()]
    return any(lines[start : start + len(wanted)] == wanted for start in range(len(lines) - len(wanted) + 1))
