"""What of a machine and a project keeps a graph from running well, each with its cure. Looks, and changes nothing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from toolkit.errors import GraphError, ToolkitError
from toolkit.launcher.addresses import choose_base
from toolkit.launcher.captured import run_captured
from toolkit.launcher.devices import Machine
from toolkit.launcher.manifest import Graph, load_graph
from toolkit.launcher.ports import find_holder
from toolkit.launcher.state import read_run, state_folder, state_home

DISTRIBUTION = "grpc-model-toolkit"
FEW_FILES = 1024
LITTLE_DISK = 1 << 30
"""Bytes free, below which logs and models soon find no room."""
TIMEOUT = 60.0
_BACKEND = "from google.protobuf.internal import api_implementation as a; print(a.Type())"


@dataclass(frozen=True, slots=True)
class Finding:
    """`cure` is empty where all is well."""

    what: str
    cure: str = ""


def examine(folder: Path, machine: Machine, environ: Mapping[str, str]) -> Iterator[Finding]:
    """All that there is to say, of this machine and of the project in this folder."""
    yield from _packages()
    yield _backend(environ)
    yield _generated(folder, environ)
    yield _files()
    yield _state(environ)
    yield _sockets(environ)
    yield from _devices(machine)
    yield from _graph(folder / "graph.yaml", environ)


def _packages() -> Iterator[Finding]:
    yield Finding(f"Python {sys.version.split()[0]}, toolkit {version(DISTRIBUTION)}")
    for said in map(Requirement, requires(DISTRIBUTION) or ()):
        if said.marker is not None and not said.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(said.name)
        except PackageNotFoundError:
            yield Finding(f"{said.name} is not installed", f"pip install '{said.name}{said.specifier}'")
            continue
        if not said.specifier.contains(found, prereleases=True):
            yield Finding(f"{said.name} {found} is not {said.specifier}", f"pip install '{said.name}{said.specifier}'")


def _backend(environ: Mapping[str, str]) -> Finding:
    backend = _run((sys.executable, "-c", _BACKEND), Path.cwd(), environ).stdout.strip()
    if backend == "upb":
        return Finding("protobuf is the fast one (upb)")
    cure = "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or pip install --force-reinstall protobuf"
    return Finding(f"protobuf works with {backend or 'nothing'}, which is slow or broken", cure)


def _generated(folder: Path, environ: Mapping[str, str]) -> Finding:
    if not (folder / "protos").is_dir():
        return Finding("no protos/ here: no generated code to look at")
    done = _run((sys.executable, "-m", "toolkit", "generate", "--check"), folder, environ)
    if done.returncode == 0:
        return Finding("the generated code is current")
    return Finding("the generated code is not that of protos/", "toolkit generate")


def _files() -> Finding:
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if least >= FEW_FILES:
        return Finding(f"{least} files may be open at once")
    return Finding(f"only {least} files may be open at once", f"ulimit -n {min(most, 65536) if most > 0 else 65536}")


def _state(environ: Mapping[str, str]) -> Finding:
    home = state_home(environ)
    above = next(each for each in (home, *home.parents) if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return Finding(f"{home} cannot be made, where logs go", "let XDG_STATE_HOME name a folder where you may write")
    free = shutil.disk_usage(above).free
    if free < LITTLE_DISK:
        return Finding(f"{free / 2**20:.0f} MiB are free where logs go, {home}", "make room, or set XDG_STATE_HOME")
    return Finding(f"logs go to {home}")


def _sockets(environ: Mapping[str, str]) -> Finding:
    base = choose_base(environ)
    if not os.access(base, os.W_OK | os.X_OK):
        return Finding(
            f"{base} cannot be written, where sockets go", "let XDG_RUNTIME_DIR name a folder where you may write"
        )
    return Finding(f"sockets go to {base}")


def _devices(machine: Machine) -> Iterator[Finding]:
    for note in machine.notes:
        yield Finding(note, "see toolkit up --dry-run")
    for at, device in enumerate(machine.devices):
        for holder in device.holders:
            held = f"{machine.label(at)} is held by pid {holder.pid} {holder.command}".rstrip()
            yield Finding(held, f"stop it where nobody needs it: kill {holder.pid}")
    if not machine.devices:
        yield Finding("no GPU: everything runs on the CPU")


def _graph(path: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    if not path.exists():
        return
    try:
        graph = load_graph(path)
    except GraphError as error:
        yield from (Finding(line, "mend that line") for line in str(error).splitlines())
        return
    run = read_run(state_folder(path, environ))
    if run is not None:
        yield Finding(f"{path} is up, by process {run.pid}")
        return
    yield from _ports(graph)


def _ports(graph: Graph) -> Iterator[Finding]:
    for name in graph.services:
        port = graph.port(name)
        holder = None if port is None else find_holder(port)
        if holder is not None:
            where = graph.where("services", name, "port")
            yield Finding(f"{where}: port {port} is taken by {holder}", "stop that, or name another port")


def _run(command: tuple[str, ...], folder: Path, environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return run_captured(command, folder, environ, TIMEOUT)
    except subprocess.TimeoutExpired:
        raise ToolkitError(f"{' '.join(command)} has not ended after {TIMEOUT:g} s") from None
