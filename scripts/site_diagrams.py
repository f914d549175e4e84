"""A hook of mkdocs: the site's diagrams as SVG, drawn while it is built, so that a browser needs no script from elsewhere.

It reads what `toolkit graph --format mermaid` prints, and no more of mermaid's language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Any, Final

_NODE: Final = re.compile(r'  (\w+)(\[|\(\()"(.+)"(?:\]|\)\))')
_ARROW: Final = re.compile(r"  (\w+) -->(?:\|(.+)\|)? (\w+)")
LETTER, HEIGHT, GAP, ROW = 8, 36, 72, 60
"""Pixels: the width of a letter, the height of a box, between two columns, from one row to the next."""
_SVG: Final = """<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}" font-size="14" text-anchor="middle" \
fill="currentColor" style="display: block; max-width: {width:g}px"><defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" \
markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>{shapes}</svg>"""
_BOX: Final = """<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height}" rx="{round}" stroke="currentColor" \
fill="var(--md-code-bg-color, #eee)"/><text x="{middle:g}" y="{base:g}">{text}</text>"""
_LINE: Final = """<path d="M{x:g} {y:g}C{half:g} {y:g} {half:g} {to_y:g} {to_x:g} {to_y:g}" fill="none" stroke="currentColor" \
marker-end="url(#tip)"/><text x="{half:g}" y="{base:g}" font-size="12">{text}</text>"""


def on_config(config: Any) -> Any:
    fence = {"name": "mermaid", "class": "", "format": lambda source, *_, **__: draw(source)}
    config["mdx_configs"]["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def draw(source: str) -> str:
    """Each deployment in a column to the right of all that call it. Raises ValueError for what it cannot read."""
    first, *lines = source.rstrip().splitlines()
    nodes = {found[1]: found for line in lines if (found := _NODE.fullmatch(line))}
    arrows = [found.groups() for line in lines if (found := _ARROW.fullmatch(line))]
    if first != "flowchart LR" or len(nodes) + len(arrows) != len(lines):
        raise ValueError(f"not what `toolkit graph --format mermaid` prints of deployments alone:\n{source}")
    columns = _columns(nodes, [(caller, callee) for caller, _, callee in arrows])
    tallest, x, boxes = max(map(len, columns)), 1.0, dict[str, dict[str, Any]]()
    for column in columns:
        width = max(LETTER * len(nodes[node][3]) for node in column) + 24
        for place, node in enumerate(column):
            y = 1 + ROW * (place + (tallest - len(column)) / 2)
            text = {"middle": x + width / 2, "base": y + HEIGHT / 2 + 5, "text": escape(nodes[node][3])}
            rounded = HEIGHT // 2 if nodes[node][2] == "((" else 3
            boxes[node] = {"x": x, "y": y, "width": width, "height": HEIGHT, "round": rounded, **text}
        x += width + GAP
    shapes = [_line(boxes[caller], boxes[callee], label or "") for caller, label, callee in arrows]
    shapes += [_BOX.format(**box) for box in boxes.values()]  # above the lines
    calls = [f"{boxes[caller]['text']} calls {boxes[callee]['text']}" for caller, _, callee in arrows]
    label = ", ".join(calls or [box["text"] for box in boxes.values()])
    return _SVG.format(label=label, width=x - GAP + 1, height=ROW * (tallest - 1) + HEIGHT + 2, shapes="".join(shapes))


def _columns(nodes: Iterable[str], calls: list[tuple[str, str]]) -> list[list[str]]:
    depth = dict.fromkeys(nodes, 0)
    for _ in depth:  # the longest way has no more steps
        for caller, callee in calls:
            depth[callee] = max(depth[callee], depth[caller] + 1)
    return [[node for node in depth if depth[node] == number] for number in range(max(depth.values()) + 1)]


def _line(caller: dict[str, Any], callee: dict[str, Any], label: str) -> str:
    x, y = caller["x"] + caller["width"], caller["y"] + HEIGHT / 2
    to_x, to_y = callee["x"], callee["y"] + HEIGHT / 2
    half, base = (x + to_x) / 2, (y + to_y) / 2 - 6
    return _LINE.format(x=x, y=y, to_x=to_x, to_y=to_y, half=half, base=base, text=escape(label))
