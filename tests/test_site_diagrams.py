"""The site's diagrams: all that the text says is drawn, and what cannot be drawn is told."""

from __future__ import annotations

import re
from itertools import combinations
from xml.etree import ElementTree

import pytest

from scripts.site_diagrams import HEIGHT, draw
from tests.pages import DOCS

DIAMOND = """\
flowchart LR
  n_shared["shared"]
  n_left["left-hand"]
  n_right["right"]
  n_top["top"]
  n_far(("far <away>"))
  n_left --> n_shared
  n_right -->|data| n_shared
  n_top --> n_left
  n_top --> n_right
  n_top --> n_far
"""
DRAWN = [
    match
    for path in sorted(DOCS.rglob("*.md"))
    for match in re.findall(r"```mermaid\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
]


def boxes_of(svg: str) -> dict[str, tuple[float, float, float]]:
    """x, y and width by what is written in the box."""
    found, place = {}, (0.0, 0.0, 0.0)
    for shape in ElementTree.fromstring(svg):
        if shape.tag == "rect":
            place = (float(shape.get("x", "")), float(shape.get("y", "")), float(shape.get("width", "")))
        elif shape.get("font-size") is None and shape.text:
            found[shape.text] = place
    return found


def test_a_deployment_stands_to_the_right_of_its_callers_and_says_its_name() -> None:
    svg = draw(DIAMOND)
    boxes = boxes_of(svg)
    assert set(boxes) == {"shared", "left-hand", "right", "top", "far <away>"}
    assert boxes["top"][0] < boxes["left-hand"][0] == boxes["right"][0] == boxes["far <away>"][0] < boxes["shared"][0]
    assert svg.count("marker-end") == 5
    assert ">data</text>" in svg
    assert 'aria-label="left-hand calls shared, right calls shared, top calls left-hand, ' in svg


@pytest.mark.parametrize("source", DRAWN)
def test_no_box_of_the_pages_covers_another_and_none_is_outside(source: str) -> None:
    svg = draw(source)
    boxes = boxes_of(svg)
    assert len(boxes) == source.count("(" * 2) + source.count("[")
    width, height = map(float, ElementTree.fromstring(svg).get("viewBox", "").split()[2:])
    assert all(0 < x < x + w < width and 0 < y < y + HEIGHT < height for x, y, w in boxes.values())
    for (x, y, w), (other_x, other_y, other_w) in combinations(boxes.values(), 2):
        assert x + w < other_x or other_x + other_w < x or abs(y - other_y) > HEIGHT


def test_there_is_a_diagram_on_each_page_of_an_example() -> None:
    assert len(DRAWN) > len(list(DOCS.glob("examples/*.md"))) > 10


@pytest.mark.parametrize(
    "source", ['flowchart TD\n  n_a["a"]\n', 'flowchart LR\n  n_a["a"]\n  subgraph p_n_both["both"]\n    n_a\n  end\n']
)
def test_what_it_does_not_know_stops_the_build(source: str) -> None:
    with pytest.raises(ValueError, match="not what `toolkit graph"):
        draw(source)
