"""`toolkit new`: the project that it makes generates, passes its own tests, is well typed, and comes up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from protoc_gen_toolkit import generate

from tests.ports import pick_port
from toolkit.errors import ToolkitError
from toolkit.project.generate import generate_project
from toolkit.project.scaffold import TEMPLATES, create_project

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = create_project(tmp_path_factory.mktemp("projects"), "acme_ml")
    generate_project(root, generate)
    return root


def test_a_project_has_what_a_newcomer_looks_for(tmp_path: Path) -> None:
    root = create_project(tmp_path, "acme")
    assert root == tmp_path / "acme"
    assert [path.name for path in tmp_path.iterdir()] == ["acme"]
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert files == {
        *(".gitignore", "README.md", "graph.schema.json", "graph.yaml", "pyproject.toml", "tests/test_search.py"),
        *("protos/acme/embedding/v1/embedding.proto", "protos/acme/search/v1/search.proto"),
        *("acme/embedding/service.py", "acme/search/service.py"),
    }


def test_nothing_is_left_of_the_placeholder(tmp_path: Path) -> None:
    root = create_project(tmp_path, "acme")
    assert not [path for path in root.rglob("*") if "project_name" in str(path) or "template" in str(path)]
    assert not [path for path in root.rglob("*") if path.is_file() and "project_name" in path.read_text()]


def test_every_template_is_used() -> None:
    assert [path for path in TEMPLATES.rglob("*") if path.is_file() and path.suffix != ".template"] == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Acme", "lower-case letters"),
        ("my-project", "lower-case letters"),
        ("3d", "lower-case letters"),
        ("_acme", "lower-case letters"),
        ("acme_", "lower-case letters"),
        ("a/b", "lower-case letters"),
        ("..", "lower-case letters"),
        ("", "lower-case letters"),
        ("a" * 41, "40 at most"),
        ("class", "is a keyword"),
        ("tests", "has a meaning of its own"),
        ("toolkit", "has a meaning of its own"),
        ("statistics", "is the name of a module"),
        ("numpy", "is the name of a module"),
    ],
)
def test_names_that_cannot_work_are_refused(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ToolkitError, match=reason):
        create_project(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    with pytest.raises(ToolkitError, match="is there already; choose another name, or remove it"):
        create_project(tmp_path, "acme")
    assert list((tmp_path / "acme").iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"cannot make .*missing/acme"):
        create_project(tmp_path / "missing", "acme")


def test_its_own_tests_pass(project: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_it_is_well_typed(project: Path) -> None:
    environment = {**ENVIRONMENT, "MYPYPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", f"--cache-dir={Path.cwd()}/.mypy_cache/scaffold"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stdout.splitlines() if line.startswith("acme_ml/")] == [], done.stdout
    assert done.returncode in (0, 1), done.stderr


@pytest.mark.integration
def test_it_comes_up_and_answers(project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(project, tmp_path / "acme_ml")
    port = pick_port()
    graph = root / "graph.yaml"
    graph.write_text(graph.read_text().replace("50051", str(port)))
    command = [sys.executable, "-m", "toolkit", "up", "graph.yaml"]
    with subprocess.Popen(command, cwd=root, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        lines: list[str] = []
        try:
            for line in up.stderr:
                lines.append(line)
                if line.startswith("ready:"):
                    break
            ask = f"""
import asyncio, json
from acme_ml.search.v1.search_toolkit import Query, SearchClient
from toolkit.connect import connect
async def main():
    async with connect(SearchClient, "127.0.0.1:{port}") as search:
        query = Query(question="a cat", documents=["rain", "the cats"])
        best = await search.best(query, timeout=20)
        print(json.dumps([best.document, [hit.document async for hit in search.rank(query, timeout=20)]]))
asyncio.run(main())
"""
            asked = [sys.executable, "-c", ask]
            done = subprocess.run(asked, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, "".join(lines) + done.stderr
            assert json.loads(done.stdout) == ["the cats", ["rain", "the cats"]]
        finally:
            up.send_signal(signal.SIGINT)
            up.communicate(timeout=60)
    assert up.returncode == 0
