"""The project whose graph is exported, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from scripts.deploy.commands import command, docker
from scripts.deploy.engine import BASE, RUNTIME

ROOT = Path(__file__).parents[2]
LEAVES = 3
PORT = 50051
IMAGE = "shop-default"
ODD = "$HOME ${HOME} $(HOME) $$ '\"\\ #: {{.ID}} %s\n- é"
"""A value that each engine has to leave as it is."""
MEMORY = 512 << 20
GRAPH = f"""\
name: shop
entry: entry
images:
  default: {{files: [shop.py, services], constraints: constraints.txt}}
services:
  leaf: {{class: "shop:Leaf", replicas: {LEAVES}, env: {{ODD: {json.dumps(ODD)}}}, resources: {{memory: {MEMORY >> 20}MiB}}}}
  entry: {{class: "shop:Entry", port: {PORT}}}
"""
BUILD = {"BASE": BASE, "RUNTIME": RUNTIME, "PIP_NO_INDEX": "1"}
"""Arguments, so that no network is needed."""
EXPOSED = ("--set", "entry.host=0.0.0.0", "--set", "entry.insecure=true")


def make(folder: Path) -> Path:
    """With the wheels that lie in `folder`, and a Dockerfile."""
    project = folder / "shop"
    clutter = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "services" / "echo", project / "services" / "echo", ignore=clutter)
    shutil.copy(ROOT / "constraints.txt", project)
    shutil.copy(ROOT / "scripts" / "deploy" / "shop.py", project)
    (folder / "wheels").rename(project / "wheels")
    (project / "graph.yaml").write_text(GRAPH)
    export(project, "dockerfile", project)
    shutil.copy(project / "Dockerfile.dockerignore", project / ".dockerignore")  # for builders that know that one only
    return project


def export(project: Path, engine: str, out: Path, *options: str) -> None:
    found = (str(project), str(ROOT), str(ROOT / "codegen"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(found)}
    words = (sys.executable, "-m", "toolkit", "export", engine, "graph.yaml", "-o", str(out), *options)
    command(*words, folder=project, env=env)


async def build(project: Path, tag: str) -> None:
    options = [f"--build-arg={name}={value}" for name, value in BUILD.items()]
    await docker(
        "build",
        "--network=none",
        *options,
        "--target=default",
        f"--tag={IMAGE}:{tag}",
        ".",
        folder=project,
        timeout=240,
    )


def set_version(project: Path, number: int) -> None:
    """A change of code; 2 is rolled out."""
    text = (ROOT / "scripts" / "deploy" / "shop.py").read_text()
    (project / "shop.py").write_text(text.replace("VERSION = 1", f"VERSION = {number}"))
