"""The JSON schema of the graph file: it is what the types say, and it tells right from wrong as they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.errors import GraphError
from toolkit.launcher.document import read_document
from toolkit.launcher.manifest import load_graph
from toolkit.launcher.schema import COMMITTED, render_schema

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads(render_schema())


def faults(values: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(values)]


def test_what_is_committed_is_current() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == render_schema(), "run scripts/generate"


def test_the_verb_prints_it() -> None:
    done = CliRunner().invoke(app, ["schema"])
    assert (done.exit_code, done.output) == (0, render_schema())


def test_it_is_a_schema_and_every_key_is_explained() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name, of in {"": SCHEMA, **SCHEMA["$defs"]}.items():
        unexplained = [key for key, value in of["properties"].items() if "description" not in value]
        assert unexplained == [], name


@pytest.mark.parametrize("path", sorted(ROOT.glob("services/*/graph*.yaml")), ids=lambda path: path.name)
def test_our_own_graph_files_pass(path: Path) -> None:
    assert faults(read_document(path).values) == []


GOOD = """\
name: g
entry: a
env: {A: a}
services:
  a:
    class: "m:C"
    replicas: {max: 1}
    traffic: {timeout: 1.5s, hedge: auto, max_message: {Say: 1MiB}}
    envs: [{name: B, value: b}]
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{max: 1}", "1"),
        ("{max: 1}", "0"),
        ("{max: 1}", "{min: 1}"),
        ("{max: 1}", "many"),
        ("{Say: 1MiB}", "1MiB"),
        ("{Say: 1MiB}", "1"),
        ("1.5s", "1.5"),
        ("1.5s", "1d"),
        ("hedge", "hegde"),
        ("m:C", "m.C"),
        ("{A: a}", "{A: 1}"),
        ("{A: a}", "{A-B: a}"),
        ("[{name: B, value: b}]", "{B: b}"),
        ("[{name: B, value: b}]", "[{name: B}]"),
        ("name: g", "name: G"),
        ("entry: a", "# no entry"),
        ("entry: a", "entry: a\nforward: [x-tenant]"),
        ("entry: a", "entry: a\nfoo: bar"),
    ],
)
def test_it_refuses_what_the_launcher_refuses(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "graph.yaml"
    path.write_text(GOOD)
    assert faults(read_document(path).values) == []
    load_graph(path)
    path.write_text(GOOD.replace(before, after, 1))
    try:
        load_graph(path)
        is_good = True
    except GraphError:
        is_good = False
    assert (faults(read_document(path).values) == []) is is_good
