"""From `module:Class` to a class: each way in which it can fail has its sentence."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoBase
from toolkit.errors import StartError
from toolkit.load import constructor_arguments, load_service, told
from toolkit.service import Service

MODULE = """
from services.echo.v1.echo_toolkit import EchoBase, EchoClient
from toolkit.client import Client
from toolkit.service import Service, depends

class Good(EchoBase): leaf = depends(EchoClient)
class Other(EchoBase): pass
class Bare(Service): pass
class Plain: pass
class Base(EchoBase): leaf = depends(EchoBase)
class Untyped(EchoBase): leaf = depends(Client)
class Number(EchoBase): leaf = depends(3)
number = 3
"""
BATCHES = """
from services.echo.v1.echo_toolkit import EchoBase
from toolkit.batching import batched

class Batches(EchoBase):
    @batched()
    def ping(self, requests, context): return requests
class BatchesStream(EchoBase):
    @batched()
    def repeat(self, requests, context): return requests
class BatchesOther(EchoBase):
    @batched()
    def help(self, requests, context): return requests
class Unbatched(BatchesStream):
    async def repeat(self, request, context): yield request
"""
SHAPES = """
from services.echo.v1.echo_toolkit import EchoBase

class Yields(EchoBase):
    async def say(self, request, context): yield request
class YieldsPlainly(EchoBase):
    def say(self, request, context): yield request
class Generator(EchoBase):
    def repeat(self, request, context): yield request
class Returns(EchoBase):
    async def repeat(self, request, context): return [request]
class Fits(EchoBase):
    def say(self, request, context): return self.ping(request, context)
    async def join(self, requests, context): return None
    def repeat(self, request, context): return aiter([])
"""


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with modules of every kind, and an interpreter that forgets them."""
    (tmp_path / "package").mkdir()
    for name, text in {
        "fine.py": MODULE,
        "batches.py": BATCHES,
        "shapes.py": SHAPES,
        "package/inner.py": "import package.absent",
        "needs_library.py": "import some_library.part",
        "needs_generated.py": "import services.absent.v1.absent_toolkit",
        "needs_name.py": "from toolkit.service import absent",
        "broken.py": "1 / 0",
        "long.py": "raise RuntimeError('first line\\nsecond line')",
        "silent.py": "raise AssertionError",
        "syntax.py": "def f(:",
        "quits.py": "raise SystemExit(0)",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    importlib.invalidate_caches()
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_class_of_the_working_directory_is_found() -> None:
    assert load_service("fine:Good").__name__ == "Good"


@pytest.mark.parametrize("name", ["Batches", "Unbatched"])
def test_batched_methods_are_those_of_the_contract_without_streams(name: str) -> None:
    assert load_service(f"batches:{name}").__name__ == name


def test_a_handler_may_be_a_function_that_hands_on_what_another_answers() -> None:
    assert load_service("shapes:Fits").__name__ == "Fits"


def test_a_class_of_an_installed_package_is_found() -> None:
    assert load_service("services.echo.service:Echo") is Echo


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("fine", "class 'fine' is not of the form package.module:Class"),
        (":Good", "class ':Good' is not of the form package.module:Class"),
        ("fine:", "class 'fine:' is not of the form package.module:Class"),
        ("fine:Good.inner", "class 'fine:Good.inner' is not of the form package.module:Class"),
        ("fien:Good", "there is no module fien (looked from the working directory); check `class`, or run from"),
        ("package.absent:X", "there is no module package.absent (looked"),
        ("fine.inner:X", "there is no module fine.inner (looked"),
        ("absent.inner:X", "there is no module absent.inner (looked"),
        (".fine:X", "importing .fine failed: TypeError: "),
        ("package.inner:X", "importing package.inner failed: it needs the module package.absent, which is not there; check the"),
        ("needs_library:X", "importing needs_library failed: it needs the module some_library, which is not there; pip install"),
        ("needs_generated:X", "importing needs_generated failed: it needs the module services.absent, which is not there; check"),
        ("needs_name:X", "importing needs_name failed: ImportError: cannot import name 'absent' from 'toolkit.service'"),
        ("broken:X", "importing broken failed: ZeroDivisionError: division by zero"),
        ("long:X", "importing long failed: RuntimeError: first line"),
        ("silent:X", "importing silent failed: AssertionError"),
        ("syntax:X", "importing syntax failed: SyntaxError: invalid syntax (syntax.py, line 1)"),
        ("quits:X", "importing quits failed: SystemExit: 0"),
        ("fine:Goood", "module fine has no class Goood; it has Bare, Base, Good, Number, Other, Untyped"),
        ("broken_not:X", "there is no module broken_not"),
        ("os:path", "os:path is not a service: let it subclass a generated XBase"),
        ("fine:Plain", "fine:Plain is not a service: let it subclass a generated XBase"),
        ("fine:number", "fine:number is not a service: let it subclass a generated XBase"),
        ("fine:Bare", "fine:Bare has no contract: let it subclass a generated XBase, not Service itself"),
        ("fine:Base", "handle leaf of fine:Base: depends() takes a generated XClient, not EchoBase"),
        ("fine:Untyped", "handle leaf of fine:Untyped: depends() takes a generated XClient, not Client"),
        ("fine:Number", "handle leaf of fine:Number: depends() takes a generated XClient, not 3"),
        ("batches:BatchesStream", "repeat of batches:BatchesStream is batched and has a stream: a batch takes one message for"),
        ("batches:BatchesOther", "help of batches:BatchesOther is batched, and is no method of services.echo.v1.Echo"),
        ("shapes:Yields", "say of shapes:Yields yields, and answers with one message: return it, or write `stream` into"),
        ("shapes:YieldsPlainly", "say of shapes:YieldsPlainly yields, and answers with one message: return it, or write"),
        ("shapes:Generator", "repeat of shapes:Generator is a plain generator: make it `async def`, or hand one to toolkit."),
        ("shapes:Returns", "repeat of shapes:Returns answers with a stream, and never yields: yield each reply, or leave out"),
        ("json:X", "module json has no class X; it has no service class"),
    ],
)  # fmt: skip
def test_each_failure_is_told_in_one_sentence(reference: str, sentence: str) -> None:
    with pytest.raises(StartError) as caught:
        load_service(reference)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_generated_code_that_is_missing_is_generated() -> None:
    Path("late.py").write_text("import services.echo.v1.absent_toolkit")
    with pytest.raises(
        StartError, match=r"services\.echo\.v1\.absent_toolkit, which is not there; run `toolkit generate`$"
    ):
        load_service("late:X")


def test_the_traceback_of_a_module_s_own_error_is_kept_for_the_log() -> None:
    with pytest.raises(StartError) as broken:
        load_service("broken:X")
    assert isinstance(broken.value.__cause__, ZeroDivisionError)
    with pytest.raises(StartError) as absent:
        load_service("fien:X")
    assert absent.value.__cause__ is None


class Takes(EchoBase):
    def __init__(self, *, model: str, top_p: float = 0.5, device: str = "cpu") -> None: ...


class TakesAny(EchoBase):
    def __init__(self, **options: Any) -> None: ...


class TakesNothing(EchoBase):
    pass


@pytest.mark.parametrize(
    ("service", "args", "expected"),
    [
        (Takes, {"model": "m"}, {"model": "m", "device": "cuda:1"}),
        (Takes, {"model": "m", "device": "cpu"}, {"model": "m", "device": "cpu"}),
        (TakesAny, {"a": 1}, {"a": 1}),
        (TakesNothing, {}, {}),
    ],
)
def test_a_constructor_gets_its_args_and_the_device_if_it_takes_one(
    service: type[Service], args: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    assert constructor_arguments(service, args, "cuda:1") == expected


@pytest.mark.parametrize(
    ("service", "args", "sentence"),
    [
        (Takes, {"modle": "m", "a": 1}, "Takes takes no argument a, modle; it takes device, model, top_p"),
        (Takes, {}, "Takes needs model: give it under `args`, or with --args"),
        (TakesNothing, {"a": 1}, "TakesNothing takes no argument a; it takes none"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(
    service: type[Service], args: Mapping[str, Any], sentence: str
) -> None:
    with pytest.raises(StartError) as caught:
        constructor_arguments(service, args, "cpu")
    assert str(caught.value) == sentence


def test_an_exception_is_told_in_one_line() -> None:
    assert told(ValueError("a\nb")) == "ValueError: a"
    assert told(ValueError()) == "ValueError"
    assert told(KeyError("k")) == "KeyError: 'k'"
