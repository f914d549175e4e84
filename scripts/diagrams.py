"""The diagrams in docs/: below `<!-- toolkit graph FILE --format mermaid -->` stands what that prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from toolkit.inspect import describe
from toolkit.launcher.edges import Description
from toolkit.launcher.manifest import load_graph
from toolkit.launcher.picture import draw
from toolkit.load import load_service

ROOT: Final = Path(__file__).parents[1]
_DIAGRAM = re.compile(r"(<!-- toolkit graph (\S+) --format mermaid -->\n\n```mermaid\n)(.*?)(```\n)", re.DOTALL)


def main() -> None:
    for page in sorted(ROOT.glob("docs/**/*.md")):
        text = page.read_text(encoding="utf-8")
        if _DIAGRAM.search(text):
            page.write_text(renewed(text), encoding="utf-8")


def renewed(page: str) -> str:
    """The page with the diagrams that its graph files and their classes have now."""
    return _DIAGRAM.sub(lambda found: f"{found[1]}{_draw(ROOT / found[2])}\n{found[4]}", page)


def _draw(path: Path) -> str:
    """As `toolkit graph` does, but that all graphs share this one process: the classes import torch."""
    graph = load_graph(path)
    descriptions = {name: Description(**describe(load_service(each.service))) for name, each in graph.services.items()}
    return draw(graph, descriptions, "mermaid").rstrip()


if __name__ == "__main__":
    main()
