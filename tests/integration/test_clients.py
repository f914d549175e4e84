"""Callers and services in other languages, each a process of its own, and a graph of real processes between them."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.up import Project, toolkit, up
from tests.ports import pick_port

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "tests" / "clients"
BUILD = ROOT / ".cache" / "clients" / "cpp"
NODE = CLIENTS / "node"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
MADE_BY_NODE = base64.b64encode(b"made by Node").decode()

pytestmark = pytest.mark.integration


@contextmanager
def graph(folder: Path, *options: str) -> Iterator[str]:
    """The graph that the clients call, up in a folder of its own; and the address of its entry."""
    port = pick_port()
    (folder / "tests").symlink_to(ROOT / "tests")
    with up(Path(shutil.copy(CLIENTS / "graph.yaml", folder)), "--set", f"front.port={port}", *options) as running:
        running.wait_ready()
        yield f"127.0.0.1:{port}"
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with graph(tmp_path_factory.mktemp("graph")) as address:
        yield address


@pytest.fixture(scope="module")
def node_service() -> Iterator[str]:
    """The address of the service that is written in Node."""
    need_node()
    command = ["node", "service.js", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=NODE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said.startswith("listening on port "), said
            yield f"127.0.0.1:{said.split()[-1]}"
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What protoc and gRPC's own plugin make of the .proto files."""
    folder = tmp_path_factory.mktemp("stubs")
    files = ["services/echo/v1/echo.proto", "toolkit/v1/options.proto", "toolkit/v1/tensor.proto"]
    outs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    run(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *outs, *files)
    return folder


def run(*command: str | Path, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """A program that ends by itself, and says nothing on standard error."""
    env = {**os.environ, "PATH": PATH, **environ}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not there: run scripts/setup-clients")


def need_node() -> None:
    need("node")
    if not (NODE / "node_modules").is_dir():
        pytest.skip("the packages of tests/clients/node are not there: run scripts/setup-clients")


def answer(language: str) -> dict[str, Any]:
    """What each client prints of the same four calls."""
    return {
        "said": ["hello", "from", language],
        "total": 589440,
        "reflected": ["FLOAT32", [32, 48], 767.5],
        "numbers": [0, 1, 2],
        "error": ["FAILED_PRECONDITION", "there is nothing to say"],
    }


def ask_with_stock_python(stubs: Path, address: str) -> dict[str, Any]:
    """Without `site` no .pth file is read, so that the toolkit of this environment cannot be imported."""
    path = f"{stubs}{os.pathsep}{Path(pytest.__file__).parents[1]}"
    printed = run(sys.executable, "-S", CLIENTS / "python" / "client.py", address, PYTHONPATH=path).stdout
    found: dict[str, Any] = json.loads(printed)
    return found


def test_stock_python_calls_a_graph(stubs: Path, address: str) -> None:
    assert ask_with_stock_python(stubs, address) == answer("Python")


def test_node_calls_a_graph(address: str) -> None:
    need_node()
    assert json.loads(run("node", "client.js", address, cwd=NODE).stdout) == answer("Node")


@pytest.mark.timeout(300)  # the first time it is compiled, which takes ten seconds and, on a busy machine, a minute
def test_cpp_calls_a_graph(address: str) -> None:
    need("make", "g++", "pkg-config", "protoc", "grpc_cpp_plugin")
    if subprocess.run(["pkg-config", "--exists", "grpc++", "protobuf"], check=False).returncode:
        pytest.skip("the headers of gRPC for C++ are not there: run scripts/setup-clients")
    run("make", "--silent", "--jobs=2", f"BUILD={BUILD}", cwd=CLIENTS / "cpp")
    assert json.loads(run(BUILD / "client", address).stdout) == answer("C++")


def test_buf_curl_calls_a_graph_that_it_asks_by_reflection(address: str, tmp_path: Path) -> None:
    need("buf")
    done = subprocess.run(
        [CLIENTS / "buf" / "client.sh", address],
        env={**os.environ, "PATH": PATH, "BUF_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert json_values(done.stdout) == [
        {"text": "hello", "tags": ["from", "buf"]},
        {"pixels": {"dtype": "FLOAT32", "shape": ["2"], "data": "AADAPwAAAMA="}},
        {"text": "again", "times": 3},
        {"text": "again", "times": 3, "number": "1"},
        {"text": "again", "times": 3, "number": "2"},
    ]
    assert json.loads(done.stderr) == {"code": "failed_precondition", "message": "there is nothing to say"}
    assert done.returncode == 8 * 9


def json_values(text: str) -> list[Any]:
    """JSON values that follow each other."""
    values = []
    while text := text.strip():
        value, end = json.JSONDecoder().raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


def test_a_service_in_node_takes_the_place_of_ours(stubs: Path, tmp_path: Path) -> None:
    need_node()
    with graph(tmp_path, "-f", str(NODE / "graph.yaml")) as address:
        assert ask_with_stock_python(stubs, address) == answer("Python")
        assert json.loads(call("Say", '{"text": "hi", "blob": "eA=="}', address).stdout)["blob"] == MADE_BY_NODE
        refused = call("Total", '{"pixels": [1, 2]}', address)
        assert "INVALID_ARGUMENT: not a tensor of FLOAT32: INT64, shape [2], 16 bytes (via echo)" in refused.stderr
        assert refused.returncode == 1


def test_a_service_in_node_that_runs_already_is_called(node_service: str, tmp_path: Path) -> None:
    with graph(tmp_path, "--set", f"echo.url={node_service}") as address:
        assert json.loads(call("Say", '{"text": "hi"}', address).stdout)["blob"] == MADE_BY_NODE


def call(method: str, request: str, address: str) -> subprocess.CompletedProcess[str]:
    return toolkit("call", method, request, "--target", address, folder=ROOT)


def test_a_service_in_node_with_another_contract_stops_the_start(node_service: str, tmp_path: Path) -> None:
    project = Project(tmp_path)
    path = project.write(f'entry: {{class: "wrong:Judge", port: PORT}}\nscoring: {{url: "{node_service}"}}')
    (tmp_path / "wrong.py").write_text(
        "from services.scoring.v1.scoring_toolkit import ScoringBase, ScoringClient\n"
        "from toolkit.service import depends\n"
        "class Judge(ScoringBase):\n"
        "    scoring = depends(ScoringClient)\n"
    )
    with up(path) as running:
        assert running.wait_exit() == 1
    (error,) = running.errors
    assert "handle scoring expects services.scoring.v1.Scoring" in error
    assert "serves services.echo.v1.Echo" in error


def test_the_page_shows_the_programs_that_are_tested() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    shown = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.MULTILINE | re.DOTALL))
    assert {"client.sh", "client.py", "client.js", "client.cpp", "service.js"} <= {Path(name).name for name in shown}
    assert shown == {name: (ROOT / name).read_text() for name in shown}
