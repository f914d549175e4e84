"""What type checkers say of generated code, and of code that uses it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = ROOT / "tests" / "golden"

Errors = dict[str, set[int]]
"""File, relative to the repository → lines."""


@pytest.fixture(scope="module")
def mypy() -> Errors:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file=", "--strict", "--explicit-package-bases"),
            *("--enable-error-code=deprecated", "--no-pretty", "--cache-dir=.mypy_cache/typing"),
            *("tests/golden/golden", "tests/typing/good.py", "tests/typing/bad.py"),
        ],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": f"{GOLDEN}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return _by_file(re.findall(r"^(\S+?):(\d+): error: (.*)", done.stdout, re.MULTILINE))


@pytest.fixture(scope="module")
def pyright() -> Errors:
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "-p", HERE], capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"], done.stdout
    found = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    lines = [(each["file"], each["range"]["start"]["line"] + 1, each["message"]) for each in found]
    return _by_file([(str(Path(file).relative_to(ROOT)), line, message) for file, line, message in lines])


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_generated_code_is_clean(checker: str, request: pytest.FixtureRequest) -> None:
    errors: Errors = request.getfixturevalue(checker)
    assert {file: lines for file, lines in errors.items() if file.startswith("tests/golden/")} == {}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_right_use_is_accepted(checker: str, request: pytest.FixtureRequest) -> None:
    errors: Errors = request.getfixturevalue(checker)
    assert errors.get("tests/typing/good.py", set()) == set()


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_each_mistake_is_refused_where_it_is_made(checker: str, request: pytest.FixtureRequest) -> None:
    errors: Errors = request.getfixturevalue(checker)
    lines = enumerate((HERE / "bad.py").read_text().splitlines(), 1)
    assert errors["tests/typing/bad.py"] == {number for number, line in lines if line.endswith("# wrong")}


def _by_file(found: list[tuple[str, int | str, str]]) -> Errors:
    errors: Errors = {}
    for file, line, message in found:
        print(f"{file}:{line}: {message}")  # noqa: T201 - pytest shows it when the test fails
        errors.setdefault(file, set()).add(int(line))
    return errors
