"""The plan → a Dockerfile with one target for each image. No shell takes part: every instruction that can is a JSON array."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from toolkit.export.compose import BUILD_ARGUMENTS
from toolkit.export.plan import CACHE, PROBE, REPLICA, USER, Plan, project_files
from toolkit.export.yaml_text import comment
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Image

VENV = "/opt/venv"
WHEELS = "/wheels"
ENVIRONMENT = {
    "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "HOME": "/tmp",
    "XDG_CACHE_HOME": CACHE,
}
_COPY_PROBE = f"import shutil, toolkit.healthcheck; shutil.copy(toolkit.healthcheck.__file__, {PROBE!r})"
_MAKE_CACHE = f"import os; os.mkdir({CACHE!r}); os.chown({CACHE!r}, {USER}, {USER})"


def render_dockerfile(plan: Plan, version: str) -> str:
    """The text of the file. Its context is the project's folder; `version` is the toolkit's."""
    lines = [comment(_HEAD.format(name=plan.graph.name)), "", *_arguments(["BASE"])]
    for name, image in plan.images.items():
        lines += ["", *_building(plan, name, image, version), "", *_running(plan, name, image)]
    return "\n".join(lines) + "\n"


def render_ignore(plan: Plan) -> str:
    """The text of `.dockerignore`: nothing is sent to the engine but what the Dockerfile copies."""
    files = [_dockerfile(plan)]
    for name, image in plan.images.items():
        files += [*project_files(plan.graph, name), *([image.constraints] if image.constraints else [])]
    kept = [f"!{each}" for each in (*dict.fromkeys(files), BUILD_ARGUMENTS["WHEELS"])]
    return "\n".join([comment(_IGNORE_HEAD), "*", *kept, "**/__pycache__"]) + "\n"


_HEAD = """Images of {name}, made by `toolkit export dockerfile`. Build from the project's folder, one target each.

With --build-arg WHEELS=FOLDER --build-arg PIP_NO_INDEX=1 pip installs from that folder alone, and no network is needed."""

_IGNORE_HEAD = """Made by `toolkit export dockerfile`.
Builders before BuildKit, docker-compose 1.29 among them, know it only as .dockerignore in the project's folder."""


def _building(plan: Plan, name: str, image: Image, version: str) -> Iterator[str]:
    yield comment(f"{name}: installed here, so that neither pip's leavings nor the wheels are in what runs.")
    yield f"FROM ${{BASE}} AS build-{name}"
    yield from _arguments(["WHEELS", "PIP_NO_INDEX"])
    yield _run("python3", "-m", "venv", VENV)
    constraints = [image.constraints] if image.constraints else []
    yield comment("There may be no wheels; the file beside them is, and lets COPY succeed.")
    yield f"COPY {_json([*map(_literal, [_dockerfile(plan), *constraints]), '${WHEELS}*', f'{WHEELS}/'])}"
    options = [f"-c{WHEELS}/{Path(each).name}" for each in constraints]
    yield _pip(*options, f"grpc-model-toolkit=={version}", *image.packages)
    if image.bare:
        yield _pip("--no-deps", *options, *image.bare)
    yield _run(f"{VENV}/bin/python", "-c", _COPY_PROBE)
    yield comment("Nothing is installed where it runs.")
    yield _run(f"{VENV}/bin/pip", "uninstall", "--yes", "pip")


def _running(plan: Plan, name: str, image: Image) -> Iterator[str]:
    used_by = ", ".join(each.name for each in plan.containers if each.said.image == name)
    yield comment(f"What runs {used_by}.")
    yield f"FROM ${{BASE}} AS {name}"
    yield f"LABEL org.opencontainers.image.title={_json(_literal(plan.graph.name))}"
    for variable, value in ENVIRONMENT.items():
        yield f"ENV {variable}={_json(value)}"
    yield f"COPY --from=build-{name} {_json(['/opt', '/opt'])}"
    yield _run("python", "-c", _MAKE_CACHE)
    yield "WORKDIR /app"
    for file in project_files(plan.graph, name):
        yield f"COPY {_json([_literal(file), _literal(f'/app/{file}')])}"
    yield _run("python", "-m", "compileall", "-q", "/app")
    yield f"USER {USER}:{USER}"
    yield f"CMD {_json(REPLICA)}"


def _arguments(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield f"ARG {name}={BUILD_ARGUMENTS[name]}"


def _pip(*arguments: str) -> str:
    common = ("install", "--no-cache-dir", "--disable-pip-version-check", f"--find-links={WHEELS}")
    return _run(f"{VENV}/bin/pip", *common, *arguments)


def _run(*command: str) -> str:
    return f"RUN {_json(command)}"


def _json(value: object) -> str:
    return json.dumps(value)


def _literal(text: str) -> str:
    """Where Docker would replace variables."""
    return text.replace("\\", "\\\\").replace("$", "\\$")


def _dockerfile(plan: Plan) -> str:
    folder = plan.graph.path.absolute().parent.relative_to(project_folder(plan.graph.path))
    return (folder / "Dockerfile").as_posix()
