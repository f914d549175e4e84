"""Pages of docs/reference are what the code says."""

from __future__ import annotations

from scripts.reference_pages import render_cli, render_graph_file, stale_pages
from toolkit.cli import app


def test_what_is_committed_is_current() -> None:
    assert [path.name for path in stale_pages()] == [], "run scripts/generate"


def test_every_verb_has_its_help() -> None:
    page = render_cli()
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"\n## toolkit {command.name or command.callback.__name__}\n" in page


def test_a_key_has_its_kind_its_default_and_its_meaning() -> None:
    page = render_graph_file()
    assert "| `device` | `auto`, `cpu`, `cuda`, `cuda:N`, `mps` or a UUID | `auto` | `auto`: a GPU, " in page
    assert "| `name` | name | **needed** |" in page
    assert "| `timeout` | duration |" in page
