"""`toolkit new NAME`: a small project that runs, made from the files in templates/."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

from toolkit.errors import ToolkitError

TEMPLATES: Final = Path(__file__).with_name("templates")
PLACEHOLDER: Final = "project_name"
"""Stands for the name, in the templates' paths and text."""
_SUFFIX: Final = ".template"
_NAME: Final = re.compile(r"[a-z]([a-z0-9_]{0,38}[a-z0-9])?", re.ASCII)
SCHEMA: Final = Path(__file__).parents[1] / "launcher" / "graph.schema.json"
"""With it beside the graph file, an editor completes and checks that."""
_TAKEN: Final = frozenset({"google", "protos", "tests", "toolkit"})
"""Names that mean something else in every project."""


def create_project(parent: Path, name: str) -> Path:
    """Make `parent`/`name`, whole or not at all, and return it. Raises ToolkitError."""
    target = parent / name
    problem = _problem(name, target)
    if problem is not None:
        raise ToolkitError(f"{name}: {problem}")
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=parent) as staging:
            made = Path(staging, name)
            for template in sorted(path for path in TEMPLATES.rglob(f"*{_SUFFIX}") if path.is_file()):
                _write(made, template, name)
            made.joinpath(SCHEMA.name).write_bytes(SCHEMA.read_bytes())
            made.rename(target)
    except OSError as error:
        raise ToolkitError(f"cannot make {target}: {error.strerror}") from None
    return target


def _problem(name: str, target: Path) -> str | None:
    if not _NAME.fullmatch(name):
        return "a project's name is lower-case letters, digits and _, a letter first, 40 at most, such as my_project"
    if keyword.iskeyword(name):
        return "is a keyword of Python; choose another name"
    if name in _TAKEN:
        return "has a meaning of its own in every project; choose another name"
    if target.exists() or target.is_symlink():
        return f"{target} is there already; choose another name, or remove it"
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        return "is the name of a module in this Python, which would hide yours; choose another name"
    return None


def _write(made: Path, template: Path, name: str) -> None:
    relative = template.relative_to(TEMPLATES).as_posix().removesuffix(_SUFFIX)
    path = made / relative.replace(PLACEHOLDER, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.read_text(encoding="utf-8").replace(PLACEHOLDER, name), encoding="utf-8", newline="\n")
