"""What a stranger installs: the wheel, in a clean environment outside the checkout, from `toolkit new` to the last process gone.

Inside the checkout everything is importable, so only here a file or a dependency that the wheel lacks is missed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import toolkit
from tests.integration.up import ROOT, Running
from tests.ports import pick_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]  # what pip has not in its cache, it fetches

CONSTRAINTS = ROOT / "constraints.txt"
SHIPPED = {"toolkit": ROOT / "toolkit", "protoc_gen_toolkit": ROOT / "codegen" / "protoc_gen_toolkit"}


@dataclass(frozen=True, slots=True)
class Stranger:
    """A folder that knows nothing of the checkout: its own Python environment, temporary files and sockets."""

    root: Path
    runtime: Path
    """Where the launcher puts sockets; not below `root`, since their paths have to be short."""

    @property
    def venv(self) -> Path:
        return self.root / "venv"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def environ(self, **more: str) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
        }
        path = f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
        inherited["XDG_STATE_HOME"] = str(self.root / "state")
        return {**inherited, "PATH": path, "TMPDIR": str(self.temporary), "XDG_RUNTIME_DIR": str(self.runtime), **more}

    def run(self, program: str, *arguments: str | Path, cwd: Path | None = None, **environ: str) -> str:
        """What a program of the environment prints. It must succeed, and say on standard error nothing but how far it is."""
        command = [self.venv / "bin" / program, *arguments]
        done = subprocess.run(
            command, cwd=cwd or self.root, env=self.environ(**environ), capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if not re.match(r"\S+ +\| ", line)]
        assert (done.returncode, said) == (0, []), f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def processes(self) -> list[str]:
        """The command lines of all that runs with this folder in its environment or command."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command, environ = ((process / name).read_bytes() for name in ("cmdline", "environ"))
            except OSError:  # it has ended, or is not ours to read
                continue
            if os.fsencode(self.root) in command + environ:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
        return found


def make_environment(venv: Path, *requirements: str | Path) -> None:
    """A venv with these, at the versions that we test with, from wheels alone: no compiler is needed."""
    if not venv.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", f"--python={venv / 'bin' / 'python'}", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--only-binary=:all:", "-c", CONSTRAINTS, *requirements], check=True)
    subprocess.run([*pip, "check"], check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="module")
def stranger(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stranger]:
    """Has installed the wheel, and nothing else."""
    (wheel,) = built.glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="run-", dir="/tmp") as runtime:
        stranger = Stranger(tmp_path_factory.mktemp("stranger"), Path(runtime))
        stranger.temporary.mkdir()
        make_environment(stranger.venv, wheel)
        yield stranger


@pytest.fixture(scope="module")
def project(stranger: Stranger) -> Path:
    """The project that `toolkit new` makes, generated."""
    stranger.run("toolkit", "new", "acme")
    root = stranger.root / "acme"
    stranger.run("toolkit", "generate", cwd=root)
    return root


def test_the_wheel_has_the_two_packages_whole_and_nothing_else(built: Path) -> None:
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in SHIPPED.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files == expected


def test_the_source_distribution_has_what_the_wheel_is_built_of(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("toolkit/", "codegen/protoc_gen_toolkit/", "protos/toolkit/")
    assert {name for name in files if not name.startswith(folders)} == {
        *(".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml")
    }
    assert {folder for folder in folders if any(name.startswith(folder) for name in files)} == set(folders)


def test_nothing_of_the_checkout_can_be_imported(stranger: Stranger) -> None:
    names = ["codegen", "protos", "scripts", "services", "tests", "torch", "toolkit", "protoc_gen_toolkit"]
    look = f"from importlib.util import find_spec; print(*(name for name in {names} if find_spec(name)))"
    assert stranger.run("python", "-c", look) == "toolkit protoc_gen_toolkit\n"
    where = "import toolkit, protoc_gen_toolkit; print(toolkit.__file__, protoc_gen_toolkit.__file__)"
    assert str(ROOT) not in stranger.run("python", "-c", where)


def test_the_command_says_its_version_and_its_verbs(stranger: Stranger) -> None:
    assert stranger.run("toolkit", "--version") == f"toolkit {toolkit.__version__}\n"
    shown = stranger.run("python", "-m", "toolkit", "--help")
    assert shown.replace("python -m toolkit [", "toolkit [") == stranger.run("toolkit", "--help")


def test_a_new_project_is_current_and_fits_together(stranger: Stranger, project: Path) -> None:
    assert stranger.run("toolkit", "generate", "--check", cwd=project) == ""
    assert stranger.run("toolkit", "check", "graph.yaml", cwd=project) == "ok: acme: deployments 2, edges 1\n"


@pytest.mark.parametrize("how", ["found on PATH", "named"])
def test_protoc_finds_the_plugin(stranger: Stranger, project: Path, tmp_path: Path, how: str) -> None:
    named = [f"--plugin=protoc-gen-toolkit={stranger.venv / 'bin' / 'protoc-gen-toolkit'}"] if how == "named" else []
    protoc = ["-m", "grpc_tools.protoc", *named, f"--toolkit_out={tmp_path}"]
    stranger.run("python", *protoc, *includes(stranger, project), "acme/embedding/v1/embedding.proto")
    (made,) = tmp_path.rglob("*.py")
    assert made.read_text() == (project / made.relative_to(tmp_path)).read_text()


def includes(stranger: Stranger, project: Path) -> list[str]:
    """protoc reads the project's .proto files, and the toolkit's where it is installed."""
    site = stranger.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    return [f"-I{project / 'protos'}", f"-I{site}"]


def test_it_serves_a_stock_client_and_leaves_nothing_behind(stranger: Stranger, project: Path) -> None:
    client = make_stock_client(stranger, project)
    graph = project / "graph.yaml"
    port = pick_port()
    graph.write_text(graph.read_text().replace("50051", str(port)))
    command = [stranger.venv / "bin" / "toolkit", "up", "graph.yaml"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=project, env=stranger.environ(), **streams) as process:  # type: ignore[call-overload]
        try:
            running = Running(process)
            running.wait_ready()
            (socket,) = stranger.runtime.glob("toolkit-*/embedding.0.1.sock")
            assert len(stranger.processes()) == 4, "the launcher, its guardian, two replicas"
            assert ask(client, f"127.0.0.1:{port}", f"unix:{socket}") == {
                "best": "the cats",
                "ranked": ["rain in May", "the cats", "a dog"],
                "is_best_first_of_all": True,
                "refusal": ["INVALID_ARGUMENT", "there are no documents to choose from"],
                "tensor": ["toolkit.v1.Tensor", 11, [64]],
                "length": 1.0,
                "toolkit": ["toolkit", "toolkit.v1", "toolkit.v1.tensor_pb2"],
            }
            query = '{"question": "a cat", "documents": ["the cats", "a dog"]}'
            replies = stranger.run("toolkit", "call", "Rank", query, "--graph", "graph.yaml", cwd=project)
            assert [json.loads(line)["document"] for line in replies.splitlines()] == ["the cats", "a dog"]
            running.signal(signal.SIGTERM)
            assert running.wait_exit() == 0
        finally:
            process.kill()
    assert running.errors == []
    assert stranger.processes() == []
    assert list(stranger.runtime.iterdir()) == []
    assert list(stranger.temporary.iterdir()) == []


def make_stock_client(stranger: Stranger, project: Path) -> Path:
    """A folder with an environment that has grpcio alone, the client, and what protoc makes for it."""
    folder = stranger.root / "client"
    folder.mkdir()
    make_environment(folder / "venv", "grpcio", "protobuf")
    protos = ["acme/embedding/v1/embedding.proto", "acme/search/v1/search.proto", "toolkit/v1/tensor.proto"]
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    stranger.run("python", "-m", "grpc_tools.protoc", *includes(stranger, project), *outputs, *protos)
    shutil.copy(Path(__file__).with_name("stock_client.py"), folder)
    return folder


def ask(client: Path, *addresses: str) -> object:
    """What the stock client was told, in a process of its own."""
    command = [client / "venv" / "bin" / "python", client / "stock_client.py", *addresses]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, cwd=client, env=clean, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_its_own_tests_pass_where_only_pytest_is_added(stranger: Stranger, project: Path) -> None:
    make_environment(stranger.venv, "pytest", "pytest-asyncio")
    assert "3 passed" in stranger.run("pytest", "-q", "-W", "error", cwd=project)
