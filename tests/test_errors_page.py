"""docs/errors.md quotes what the code says, word for word, and has a row for every sentence that tests/sentences.py finds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.pages import DOCS, ROOT
from tests.sentences import NOT_READ, sentences, text_of

_ROW = re.compile(r"\| (?:[A-Z_, ]+ \| )?(`.+?`) \| ")
_QUOTATION = re.compile(r"(`+) ?(.+?) ?\1(?:<br>|$)")


def _quoted(line: str) -> Iterator[str]:
    """The sentences of a row, which `<br>` parts."""
    row = _ROW.match(line)
    yield from (found[2] for found in _QUOTATION.finditer(row[1])) if row else ()


def _pattern(quoted: str) -> re.Pattern[str]:
    """`…` stands for anything, and a word is a whole one."""
    said = quoted.strip("… ")
    wanted = ".*".join(map(re.escape, said.split("…")))
    return re.compile((r"\b" if said[0].isalnum() else "") + wanted + (r"\b" if said[-1].isalnum() else ""))


QUOTED = [each for line in (DOCS / "errors.md").read_text("utf-8").splitlines() for each in _quoted(line)]
PATTERNS = {quoted: _pattern(quoted) for quoted in QUOTED}


def _texts() -> Iterator[str]:
    """Every text in the code, with `…` for what is put in."""
    for path in [*ROOT.glob("toolkit/**/*.py"), *ROOT.glob("codegen/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield text_of(node)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


TEXTS = "\n".join(_texts())


def test_there_are_quotations() -> None:
    assert len(QUOTED) > 300


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_sentence_is_one_of_the_code(quoted: str) -> None:
    assert PATTERNS[quoted].search(TEXTS), quoted


def test_nothing_is_quoted_twice() -> None:
    assert sorted(QUOTED) == sorted(set(QUOTED))


def test_every_sentence_of_the_code_has_a_row() -> None:
    missing = {
        said: places
        for said, places in sentences().items()
        if not any(pattern.search(said) for pattern in PATTERNS.values())
    }
    assert not missing, "quote these in docs/errors.md"


@pytest.mark.parametrize(
    "said",
    [
        "no graph is up; toolkit up graph.yaml -d brings one up",  # raised
        "required fields are not supported",  # through a method of the codegen's own
        "is a keyword of Python; choose another name",  # what another function returns
        "free of …; held by …",  # a line of several, collected in a mapping
        "cannot be started",  # the launcher complains
    ],
)
def test_a_sentence_is_found_wherever_it_comes_from(said: str) -> None:
    assert any(said in each for each in sentences())


@pytest.mark.parametrize("path", NOT_READ)
def test_what_is_not_read_is_there(path: str) -> None:
    assert (ROOT / path).is_file()
