"""docs/errors.md quotes what the code says, word for word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.pages import DOCS, ROOT

_ROW = re.compile(r"\|(?: [A-Z_, ]+ \|)? (`+) ?(.+?) ?\1 \| ")
QUOTED = [match[2] for line in (DOCS / "errors.md").read_text("utf-8").splitlines() if (match := _ROW.match(line))]


def _sentences() -> Iterator[str]:
    """Every text in the code, with `…` for what is put in."""
    for path in [*ROOT.glob("toolkit/**/*.py"), *ROOT.glob("codegen/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


SENTENCES = "\n".join(_sentences())


def test_there_are_quotations() -> None:
    assert len(QUOTED) > 50


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_sentence_is_one_of_the_code(quoted: str) -> None:
    wanted = ".*".join(map(re.escape, quoted.strip("… ").split("…")))
    assert re.search(wanted, SENTENCES), quoted
