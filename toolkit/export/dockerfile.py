"""The plan → a Dockerfile with one target for each image. No shell takes part: every instruction that can is a JSON array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from packaging.requirements import Requirement

from toolkit.export.plan import CACHE, PROBE, REPLICA, USER, Plan, project_files, refuse
from toolkit.export.yaml_text import comment
from toolkit.launcher.document import Key
from toolkit.launcher.folder import project_folder
from toolkit.launcher.manifest import Image

DISTRIBUTION = "grpc-model-toolkit"
SERVED = (
    "googleapis-common-protos",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "numpy",
    "protobuf",
    "uvloop",
)
"""Of what the toolkit depends on: what a replica needs. The rest is for the command line."""
VENV = "/opt/venv"
PIP = "/pip"
"""Where it is alone: nothing is installed in what runs."""
WHEELS = "wheels"
CONSTRAINTS = "/constraints.txt"
ENVIRONMENT = {
    "PATH": f"{VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "HOME": "/tmp",
    "XDG_CACHE_HOME": CACHE,
}
_BASE = "${BASE:-python:3.12-slim}"
"""docker-compose 1.29 hands over arguments that nobody gave as empty ones, so defaults of ARG would be lost."""
_FINISH = (
    "import pathlib, shutil, numpy, toolkit.healthcheck; "
    f"shutil.copy(toolkit.healthcheck.__file__, {PROBE!r}); "
    "[shutil.rmtree(each, True) for each in [*pathlib.Path(numpy.__file__).parent.rglob('tests')]]"
)
_MISREAD = re.compile(r"[*?\[\\\x00-\x1f\x7f]|^\s|\s$")
_MAKE_CACHE = f"import os; os.mkdir({CACHE!r}); os.chown({CACHE!r}, {USER}, {USER})"


def render_dockerfile(plan: Plan, version: str, requires: Sequence[str]) -> str:
    """The text of the file. Its context is the project's folder; `version` is the toolkit's, which `requires` these.

    Raises GraphError where a Dockerfile cannot say it.
    """
    refuse(plan.graph, list(_find_problems(plan)))
    lines = [comment(_HEAD.format(name=plan.graph.name)), "", "ARG BASE", "ARG RUNTIME"]
    lines += ["", *_common_build(plan), "", *_common_run(plan)]
    for name, image in plan.images.items():
        lines += ["", *_building(name, image, f"{DISTRIBUTION}=={version}", requires), "", *_running(plan, name)]
    return "\n".join(lines) + "\n"


def _find_problems(plan: Plan) -> Iterator[tuple[Key, str]]:
    for name, image in plan.images.items():
        for key, files in (("files", image.files or ()), ("constraints", [image.constraints or "."])):
            for file in files:
                if _MISREAD.search(file):
                    reads = "a Dockerfile reads * ? [ \\ and line breaks in a name as something else, and loses spaces around it"
                    yield ("images", name, key), f"{file!r}: {reads}; rename it, or name the folder that it is in"
                elif PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                    yield (
                        ("images", name, key),
                        f"{file!r}: only what is in the project's folder can be copied into an image",
                    )


def render_ignore(plan: Plan) -> str:
    """The text of `.dockerignore`: nothing is sent to the engine but what the Dockerfile copies."""
    files = [_dockerfile(plan)]
    for name, image in plan.images.items():
        files += [*project_files(plan.graph, name), *([image.constraints] if image.constraints else [])]
    kept = [f"!{each}" for each in (*dict.fromkeys(files), WHEELS)]
    return "\n".join([comment(_IGNORE_HEAD), "*", *kept, "**/__pycache__"]) + "\n"


_HEAD = """Images of {name}, made by `toolkit export dockerfile`. Build from the project's folder, one target each.

  --build-arg BASE=IMAGE       has Python with venv; python:3.12-slim if not given
  --build-arg RUNTIME=IMAGE    what images begin with, if not with BASE: the same Python at the same place; it needs no shell
  --build-arg WHEELS=FOLDER    a folder of wheels in the project's; wheels if not given, and it need not exist
  --build-arg PIP_NO_INDEX=1   pip installs from those wheels alone, so that no network is needed"""

_IGNORE_HEAD = """Made by `toolkit export dockerfile`.
Builders before BuildKit, docker-compose 1.29 among them, know it only as .dockerignore in the project's folder."""


def _common_build(plan: Plan) -> Iterator[str]:
    yield comment("Each image is installed in a stage of its own, so that neither pip nor the wheels are in what runs.")
    yield f"FROM {_BASE} AS common.build"
    yield "ARG WHEELS"
    yield "ARG PIP_NO_INDEX"
    yield "ENV PIP_NO_INDEX=${PIP_NO_INDEX}"
    yield _run("python3", "-m", "venv", PIP)
    yield _run("python3", "-m", "venv", "--without-pip", VENV)
    yield comment("There may be no wheels; the file beside them is, and lets COPY succeed.")
    yield f"COPY {_json([_literal(_dockerfile(plan)), f'${{WHEELS:-{WHEELS}}}*', f'/{WHEELS}/'])}"


def _common_run(plan: Plan) -> Iterator[str]:
    yield f"FROM ${{RUNTIME:-{_BASE}}} AS common.run"
    yield f"LABEL org.opencontainers.image.title={_json(_literal(plan.graph.name))}"
    for variable, value in ENVIRONMENT.items():
        yield f"ENV {variable}={_json(value)}"
    yield _run("python3", "-c", _MAKE_CACHE)
    yield "WORKDIR /app"
    yield f"CMD {_json(REPLICA)}"


def _building(name: str, image: Image, toolkit: str, requires: Sequence[str]) -> Iterator[str]:
    yield f"FROM common.build AS build.{name}"
    options = []
    if image.constraints:
        yield f"COPY {_json([_literal(image.constraints), CONSTRAINTS])}"
        options = [f"-c{CONSTRAINTS}"]
    yield _pip("--no-deps", *options, toolkit, *image.bare)
    if image.fetch:
        yield comment("What fetches may be the toolkit's command line, so this one has all that it needs.")
        yield _pip(*options, toolkit, *image.packages)
    else:
        yield comment("What a replica needs, and not what the toolkit's command line does.")
        yield _pip(*options, *_served(requires), *image.packages)
    yield comment("The probe, where Python finds it at once; and NumPy without its tests, which are a third of it.")
    yield _run(f"{VENV}/bin/python", "-c", _FINISH)


def _served(requires: Sequence[str]) -> Iterator[str]:
    found = {each.name: each for each in map(Requirement, requires)}
    yield from (f"{name}{found[name].specifier}" for name in SERVED)


def _running(plan: Plan, name: str) -> Iterator[str]:
    used_by = ", ".join(each.unit.label for each in plan.containers if each.said.image == name)
    yield comment(f"What runs {used_by}.")
    yield f"FROM common.run AS {name}"
    yield f"COPY --from=build.{name} {_json(['/opt', '/opt'])}"
    for file in project_files(plan.graph, name):
        yield f"COPY {_json([_literal(file), _literal(f'/app/{file}')])}"
    yield _run("python", "-m", "compileall", "-q", "/app")
    yield f"USER {USER}:{USER}"


def _pip(*arguments: str) -> str:
    common = ("install", "--no-cache-dir", "--disable-pip-version-check", f"--find-links=/{WHEELS}")
    return _run(f"{PIP}/bin/pip", f"--python={VENV}/bin/python", *common, *arguments)


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
