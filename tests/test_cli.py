"""The command line: quick, plain, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import toolkit
from toolkit import cli
from toolkit.errors import (
    Code,
    GenerateError,
    GraphError,
    PlacementError,
    ServiceError,
    StartError,
    ToolkitError,
    UsageError,
)

ROOT = Path(__file__).parents[1]
VERBS = (
    "up",
    "down",
    "ps",
    "logs",
    "restart",
    "scale",
    "graph",
    "doctor",
    "fetch",
    "check",
    "call",
    "certs",
    "generate",
    "new",
)


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}"}
    command = [sys.executable, "-m", "toolkit", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_help_names_every_verb() -> None:
    said = CliRunner().invoke(cli.app, ["--help"])
    assert said.exit_code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in said.output
    assert "..." not in said.output.split("Commands:")[1], "a verb's first sentence fits its line"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    said = CliRunner().invoke(cli.app, [verb, "--help"])
    assert said.exit_code == 0
    assert f"\n    toolkit {verb} " in said.output or f"\n    toolkit {verb}\n" in said.output


def test_up_tells_its_exit_codes() -> None:
    said = CliRunner().invoke(cli.app, ["up", "--help"]).output
    for code in (0, 1, 2, 3, 4, 8, 130):
        assert f"\n    {code} " in said


def test_version() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"toolkit {toolkit.__version__}\n"


def test_help_is_quick() -> None:
    """Its share of a start of Python: the best of three, for the machine may be busy."""

    def spent(*command: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(spent("-m", "toolkit", "--help") for _ in range(3)) <= 0.25


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (GraphError("a:1: x\na:2: y"), 2, "error: a:1: x\nerror: a:2: y\n"),
        (PlacementError("no GPU"), 3, "error: no GPU\n"),
        (UsageError("no"), 2, "error: no\n"),
        (StartError("no"), 1, "error: no\n"),
        (GenerateError("p:1:2: no"), 1, "error: p:1:2: no\n"),
        (ToolkitError("no"), 1, "error: no\n"),
        (
            ServiceError(Code.NOT_FOUND, "no such model", path=["a", "b"]),
            1,
            "error: NOT_FOUND: no such model (via a → b)\n",
        ),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert exited.value.code == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["upp"], "Did you mean 'up'?"),
        (["up"], "Missing argument 'FILE'"),
        (["up", "graph.yaml", "--start-timeout", "5"], "--start-timeout must be a duration with its unit"),
        (["up", "graph.yaml", "--drain-timeout", "0s"], "--drain-timeout must be a duration with its unit"),
        (
            ["up", "graph.yaml", "-d", "--stop-with-input"],
            "--stop-with-input: a graph that is left running has no input",
        ),
        (["call", "Say", "{}"], "name what to call: either --graph FILE or --target HOST:PORT"),
        (["call", "Say", "{}", "--graph", "g", "--target", "t"], "name what to call: either"),
        (["call", "Say", "{}", "--target", "t:1", "--timeout", "x"], "--timeout must be a duration"),
        (["call", "Say", "{}", "--target", ""], "--target : write HOST:PORT, or unix:/absolute/path"),
        (["call", "Say", "{}", "--target", "localhost:99999"], "--target localhost:99999: write HOST:PORT"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], expected: str) -> None:
    said = CliRunner().invoke(cli.app, arguments)
    assert said.exit_code == 2
    assert expected in " ".join(said.output.split())


def test_call_says_when_nobody_answers(tmp_path: Path) -> None:
    done = run("call", "Say", "{}", "--target", f"unix:{tmp_path}/none.sock")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: nobody answers at ")


def test_generate_says_where_there_is_no_project(tmp_path: Path) -> None:
    done = run("generate", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_new_project_checks(tmp_path: Path) -> None:
    """Made, generated, and its graph file and classes are right."""
    made = run("new", "my_project", folder=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    project = tmp_path / "my_project"
    generated = run("generate", folder=project)
    assert generated.returncode == 0, generated.stderr
    assert run("generate", "--check", folder=project).returncode == 0
    checked = run("check", "graph.yaml", folder=project)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("ok: ")
    for path in project.rglob("*_toolkit.py"):
        path.write_text(path.read_text() + "# by hand\n")
    drifted = run("generate", "--check", folder=project)
    assert drifted.returncode == 1
    assert "-# by hand" in drifted.stdout
    again = run("new", "my_project", folder=tmp_path)
    assert again.returncode == 1
    assert again.stderr.startswith("error: my_project: ")
