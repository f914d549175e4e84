"""What the run-check of the documentation takes a page for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import fits, is_excerpt, read_page

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
