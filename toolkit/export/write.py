"""`toolkit export`: graph file → the files of an engine, on disk or on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ToolkitError
from toolkit.export.compose import build as build_compose
from toolkit.export.compose import render_compose
from toolkit.export.dockerfile import DISTRIBUTION, render_dockerfile, render_ignore
from toolkit.export.kubernetes import build as build_manifests
from toolkit.export.kubernetes import render_manifests, validate
from toolkit.export.plan import Plan
from toolkit.export.swarm import build as build_stack
from toolkit.export.swarm import render_stack

ENGINES = ("compose", "swarm", "kubernetes", "dockerfile")


def render(plan: Plan, engine: str, folder: Path, version: str) -> dict[str, str]:
    """File name → text, checked; paths in it are relative to `folder`. Raises GraphError where the engine cannot do it."""
    return _ENGINES[engine](plan, folder.absolute(), version)


def _compose(plan: Plan, folder: Path, version: str) -> dict[str, str]:
    return {"docker-compose.yml": _checked(render_compose(plan, folder), build_compose(plan, folder))}


def _swarm(plan: Plan, folder: Path, version: str) -> dict[str, str]:
    return {"stack.yml": _checked(render_stack(plan, folder), build_stack(plan, folder))}


def _dockerfile(plan: Plan, folder: Path, version: str) -> dict[str, str]:
    text = render_dockerfile(plan, version, requires(DISTRIBUTION) or ())
    return {"Dockerfile": text, "Dockerfile.dockerignore": render_ignore(plan)}


def _kubernetes(plan: Plan, folder: Path, version: str) -> dict[str, str]:
    files = render_manifests(plan)
    found = [one for name in files if name != "kustomization.yaml" for one in yaml.safe_load_all(files[name])]
    if found != build_manifests(plan):
        raise ToolkitError("what was written does not read back as what was meant; please report it")
    validate(found)
    return files


_ENGINES: Mapping[str, Callable[[Plan, Path, str], dict[str, str]]] = {
    "compose": _compose,
    "swarm": _swarm,
    "kubernetes": _kubernetes,
    "dockerfile": _dockerfile,
}


def _checked(text: str, meant: Mapping[str, Any]) -> str:
    """`text`, once it reads back as what was meant."""
    if yaml.safe_load(text) != meant:
        raise ToolkitError("what was written does not read back as what was meant; please report it")
    return text


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write them into `folder`, which is made if need be. Raises ToolkitError."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = folder / name
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
    except OSError as error:
        raise ToolkitError(f"cannot write into {folder}: {error.strerror}") from None
    return written
