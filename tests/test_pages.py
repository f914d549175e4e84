"""What the run-check of the documentation takes a page for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.benchmark.__main__ import CASES
from tests.pages import DOCS, ROOT, fits, is_excerpt, read_page

PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]

PAGE = """\
# Title

```sh
echo hi
```

It prints

```text
hi
```

<!-- not run: it takes minutes -->

```sh title="first terminal"
sleep 1000
```

```console
$ only shown
```
"""


def test_a_page_is_its_blocks_with_what_they_print(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    page = read_page(path)
    first, second = page.blocks
    assert (first.line, first.language, first.text, first.expected) == (3, "sh", "echo hi\n", "hi\n")
    assert (second.title, second.reason) == ("first terminal", "it takes minutes")
    assert page.runs
    assert not page.in_repository


@pytest.mark.parametrize(
    ("expected", "printed", "is_so"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a\n", "a\nb\n", False),
        ("a … c\n", "a b c\n", True),
        ("a … c\n", "a b d\n", False),
        ("…\nc\n", "a\nb\nc\n", True),
        ("…\nc\n", "a\nb\nd\n", False),
        ("a.c\n", "abc\n", False),
    ],
)
def test_three_dots_stand_for_what_differs(expected: str, printed: str, is_so: bool) -> None:
    assert fits(expected, printed) is is_so


def test_other_numbers_may_stand_where_a_page_says_so(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```sh\nx\n```\n\n<!-- other numbers elsewhere -->\n```text\n a  93% (0.5) in 2 s\n```\n")
    (block,) = read_page(path).blocks
    assert block.any_numbers
    assert block.expected is not None
    for printed, is_so in (
        (" a   7% (12) in 10.5 s", True),
        (" a   x% (12) in 10.5 s", False),
        (" a 7% (12) s", False),
    ):
        assert fits(block.expected, printed, any_numbers=True) is is_so


def test_an_excerpt_stands_in_the_source_paragraph_by_paragraph() -> None:
    source = "def f():\n    a = 1\n    b = 2\n\n    return a\n"
    assert is_excerpt("a = 1\nb = 2\n\nreturn a\n", source)
    assert is_excerpt("a = 1\n\n...\n\nreturn a\n", source)
    assert not is_excerpt("a = 1\nb = 3\n", source)
    assert not is_excerpt("a = 1\nreturn a\n", source)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_of_the_repository_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"scripts/bench ([a-z][\w-]+)", text)) <= set(CASES)
    if page.parent == ROOT or read_page(page).in_repository:
        said = re.sub(r"```\w+ title=.*?```", "", text, flags=re.DOTALL)
        named = re.findall(r"(?<![\w./-])(?:scripts|services|tests|docs|toolkit|protos)/[\w./-]*\w", said)
        places = (ROOT, ROOT / "protos")
        gone = [name for name in named if not any((place / name).exists() for place in places)]
        assert [name for name in gone if "NAME" not in name] == []


def test_what_the_readme_says_of_others_was_measured() -> None:
    rows = re.findall(
        r"^\| (?:a small|small|a tensor) .*", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    said = {number for row in rows for cell in row.split("|")[2:] for number in re.findall(r"\d[\d.]*", cell)}
    measured = re.findall(r"(?<= )\d[\d.]*(?= )", (DOCS / "benchmarks.md").read_text(encoding="utf-8"))
    assert len(said) == 15
    assert said <= set(measured)
