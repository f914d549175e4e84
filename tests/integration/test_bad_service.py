"""What can be wrong with a service, as who starts it sees it: one sentence with the cure, exit code 1, nothing left.

Every sentence about modules, classes and arguments is in test_load.py; the same for a graph file in test_bad_input.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.alone import Alone, alone
from tests.integration.up import ROOT, toolkit

pytestmark = pytest.mark.integration

ECHO = "services.echo.v1.Echo"
CLASSES = """
import json
from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient
from toolkit.errors import StartError
from toolkit.service import Service, depends


class Takes(Echo):
    def __init__(self, *, model: str, top_p: float = 0.5): pass

class Raises(Echo):
    def __init__(self): json.loads("{\\n")

class Refuses(Echo):
    def __init__(self): raise StartError("model 'm': its folder is empty; run `fetch m`")

class Exits(Echo):
    def __init__(self): raise SystemExit(0)

class Enters(Echo):
    async def __aenter__(self): raise OSError(24, "Too many open files")

class Bare(Service): pass

class Caller(Echo):
    leaf = depends(EchoClient)
"""
SENTENCES: dict[tuple[str, ...], str] = {
    ("clases:Takes",): (
        "there is no module clases (looked from the working directory); check `class`, or run from the project's root"
    ),
    ("broken:X",): "importing broken failed: SyntaxError: '(' was never closed (broken.py, line 1)",
    ("classes:Take",): ("module classes has no class Take; it has Bare, Caller, Enters, Exits, Raises, Refuses, Takes"),
    ("classes:Bare",): "classes:Bare has no contract: let it subclass a generated XBase, not Service itself",
    ("classes:Takes", "--args", '{"model": "m", "temprature": 1}'): (
        "Takes takes no argument temprature; it takes model, top_p"
    ),
    ("classes:Takes",): "Takes needs model: give it under `args`, or with --args",
    ("classes:Raises",): (
        "Raises cannot be made: JSONDecodeError: "
        "Expecting property name enclosed in double quotes: line 2 column 1 (char 2)"
    ),
    ("classes:Refuses",): "model 'm': its folder is empty; run `fetch m`",
    ("classes:Exits",): "Exits cannot be made: RuntimeError: SystemExit 0",
    ("classes:Enters",): "Enters cannot be entered: OSError: [Errno 24] Too many open files",
    ("classes:Caller",): (
        "handle leaf has no deployment 'leaf'; known: none. "
        "Add it to the graph file, let `bind` name another, or pass --handle leaf=ADDRESS"
    ),
    ("classes:Caller", "--handle", "leaf=127.0.0.1:1"): (
        "not ready after 0.7 s: nobody answers for handle leaf at 127.0.0.1:1; start it, or name another address"
    ),
    ("classes:Caller", "--handle", "leaf=dns:///no.such.host.invalid:1"): (
        "not ready after 0.7 s: nobody answers for handle leaf at dns:///no.such.host.invalid:1 (Name or service not "
        "known); start it, or name another address"
    ),
    ("services.echo.service:Echo", "--listen", "192.0.2.1:5000", "--insecure"): (
        "cannot listen on 192.0.2.1:5000: it is no address of this machine; 127.0.0.1 is, and 0.0.0.0 stands for all"
    ),
}
WITH_TRACEBACK = {"broken:X", "classes:Raises", "classes:Exits", "classes:Enters"}
"""Faults of the user's own code, whose log has the place too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    (made / "classes.py").write_text(CLASSES)
    (made / "broken.py").write_text("f(\n")
    return made


@pytest.mark.parametrize("command", SENTENCES, ids=" ".join)
def test_a_service_that_cannot_start_is_told_in_one_sentence(folder: Path, command: tuple[str, ...]) -> None:
    env = {"TOOLKIT_START_TIMEOUT": "0.7"} if "--handle" in command else {}
    with alone(*command, folder=folder, env=env) as process:
        assert process.wait_exit() == 1
    assert process.errors == [f"error: {SENTENCES[command]}"], "\n".join(process.said)
    assert process.said[-1] == process.errors[0], "the last word"
    assert ("Traceback (most recent call last):" in process.said) == (command[0] in WITH_TRACEBACK)


def test_a_taken_port_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with alone("services.echo.service:Echo", "--listen", address, folder=folder) as process:
            assert process.wait_exit() == 1
    sentence = f"error: cannot listen on {address}: it is taken; stop whoever holds it, or name another port"
    assert errors_and_nothing_of_grpc(process) == [sentence]


def test_a_taken_socket_is_told_and_its_holder_goes_on(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/echo.sock"
    with alone("services.echo.service:Echo", "--listen", address, folder=tmp_path) as holder:
        assert holder.wait_ready() == (address,)
        with alone("services.echo.service:Echo", "--listen", address, folder=tmp_path) as process:
            assert process.wait_exit() == 1
        done = toolkit("call", "Ping", "{}", "--target", address, folder=tmp_path)
        assert "reflection" in done.stderr, "it still answers"
    sentence = f"error: cannot listen on {address}: somebody does; stop them, or name another path"
    assert errors_and_nothing_of_grpc(process) == [sentence]


def errors_and_nothing_of_grpc(process: Alone) -> list[str]:
    return [line for line in process.said if not line.startswith("INFO ")]


# Models


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "MODEL_CACHE": str(tmp_path / "models")}
    options = ("--args", '{"model": "somebody/some-model"}')
    with alone("services.text_generation.service:TextGeneration", *options, folder=ROOT, env=env) as process:
        assert process.wait_exit() == 1
    sentence = (
        "model 'somebody/some-model' is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids to ask the hub: "
        "unset it, or use minilm-l6 or smollm2-135m, which need no hub"
    )
    assert process.errors == [f"error: {sentence}"]
    assert "Traceback (most recent call last):" not in process.said


# Contracts


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its own idea of services.echo: its lines are bytes, and it cannot chat."""
    made = tmp_path_factory.mktemp("others")
    proto = Path("protos/services/echo/v1/echo.proto")
    text = (ROOT / proto).read_text()
    changed = text.replace("string text = 1;", "bytes text = 1;", 1).replace("rpc Chat(", "rpc Talk(")
    assert changed.count("bytes text") == changed.count("rpc Talk") == 1
    (made / proto).parent.mkdir(parents=True)
    (made / proto).write_text(changed)
    done = toolkit("generate", folder=made)
    assert done.returncode == 0, done.stderr
    (made / "theirs.py").write_text("from services.echo.v1.echo_toolkit import EchoBase\nclass Echo(EchoBase): pass\n")
    return made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.mark.parametrize("options", [("--reflection",), ()], ids=["reflection", "health"])
def test_a_handle_on_a_deployment_of_another_contract_is_refused(
    folder: Path, stack: ExitStack, options: tuple[str, ...]
) -> None:
    scoring = stack.enter_context(alone("services.scoring.v1.scoring_toolkit:ScoringBase", *options, folder=folder))
    (address,) = scoring.wait_ready()
    caller = stack.enter_context(alone("classes:Caller", "--handle", f"leaf={address}", folder=folder))
    assert caller.wait_exit() == 1
    sentence = (
        f"handle leaf expects {ECHO}, and what answers at {address} serves services.scoring.v1.Scoring; "
        "let `bind` name the right deployment, or change depends()"
    )
    assert caller.errors == [f"error: {sentence}"]
    assert scoring.process.poll() is None, "who was asked goes on"


def test_a_contract_of_the_same_name_that_differs_is_refused(folder: Path, others: Path, stack: ExitStack) -> None:
    (address,) = stack.enter_context(alone("theirs:Echo", "--reflection", folder=others)).wait_ready()
    caller = stack.enter_context(alone("classes:Caller", "--handle", f"leaf={address}", folder=folder))
    assert caller.wait_exit() == 1
    sentence = (
        f"handle leaf expects {ECHO} as this side's .proto has it, and what answers at {address} differs: "
        "Line.text (field 1) is string here and bytes there; method Chat is missing there. "
        "Bring both to one .proto and run `toolkit generate`"
    )
    assert caller.errors == [f"error: {sentence}"]


def test_a_contract_of_another_package_but_the_same_shape_is_another_contract(stack: ExitStack, tmp_path: Path) -> None:
    """What counts is the name: two services that look alike need not mean the same."""
    proto = tmp_path / "protos/copied/echo/v1/echo.proto"
    proto.parent.mkdir(parents=True)
    text = (ROOT / "protos/services/echo/v1/echo.proto").read_text()
    proto.write_text(text.replace("package services.echo.v1;", "package copied.echo.v1;"))
    assert toolkit("generate", folder=tmp_path).returncode == 0
    (tmp_path / "classes.py").write_text(CLASSES)
    (address,) = stack.enter_context(alone("copied.echo.v1.echo_toolkit:EchoBase", folder=tmp_path)).wait_ready()
    caller = stack.enter_context(alone("classes:Caller", "--handle", f"leaf={address}", folder=tmp_path))
    assert caller.wait_exit() == 1
    assert caller.errors[0].startswith(
        f"error: handle leaf expects {ECHO}, and what answers at {address} serves copied.echo"
    )
