"""What keeps graphs from running well, each with its cure."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.launcher import doctor
from toolkit.launcher.devices import Machine
from toolkit.launcher.doctor import Finding, examine

ROOT = Path(__file__).parents[1]
ENVIRON = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}"}


def wrong(folder: Path, **environ: str) -> list[Finding]:
    env = {**ENVIRON, "XDG_STATE_HOME": str(folder / "state"), **environ}
    return [each for each in examine(folder, Machine(cores=(0, 1)), env) if each.cure]


def test_this_machine_is_well(tmp_path: Path) -> None:
    assert wrong(tmp_path) == []


def test_a_port_that_is_taken_is_told_with_its_holder(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        graph = f'name: g\nentry: a\nservices:\n  a: {{class: "m:C", port: {port}}}\n'
        (tmp_path / "graph.yaml").write_text(graph)
        (found,) = wrong(tmp_path)
    assert f"port {port} is taken by process {os.getpid()} " in found.what


def test_a_graph_file_that_is_wrong_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "graph.yaml").write_text('name: g\nentry: b\nservices:\n  a: {class: "m:C"}\n')
    (found,) = wrong(tmp_path)
    assert "graph.yaml:2: entry: " in found.what


def test_generated_code_that_is_old_is_told(tmp_path: Path) -> None:
    protos = tmp_path / "protos" / "a" / "v1"
    protos.mkdir(parents=True)
    (protos / "a.proto").write_text('syntax = "proto3";\npackage a.v1;\nmessage A {}\n')
    assert [each.cure for each in wrong(tmp_path)] == ["toolkit generate"]


def test_a_slow_protobuf_is_told(tmp_path: Path) -> None:
    (found,) = wrong(tmp_path, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")
    assert "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION" in found.cure


def test_a_state_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = wrong(tmp_path, XDG_STATE_HOME=str(tmp_path / "file"))
    assert "XDG_STATE_HOME" in found.cure


def test_too_few_open_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda kind: (256, resource.RLIM_INFINITY))
    (found,) = wrong(tmp_path)
    assert found == Finding("only 256 files may be open at once", "ulimit -n 65536")


def test_it_is_a_verb(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "toolkit", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("ok:    Python ")
    assert done.returncode == int("wrong: " in done.stdout)
