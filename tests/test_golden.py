"""The generated text itself: tests/golden/golden is what tests/golden/protos becomes, and it runs.

After a change to the generator: `scripts/generate`, then read the difference in git like code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message as ProtobufMessage
from protoc_gen_toolkit import generate

from toolkit import codec, gencode
from toolkit.project.generate import generate_project

GOLDEN = Path(__file__).parent / "golden"
REPOSITORY = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(GOLDEN).with_suffix("").as_posix().replace("/", ".")
    for path in GOLDEN.glob("golden/**/*_toolkit.py")
)


@pytest.fixture(autouse=True)
def _golden_is_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(GOLDEN))


@pytest.mark.parametrize("root", [GOLDEN, REPOSITORY], ids=["golden", "repository"])
def test_committed_code_is_what_the_generator_makes(root: Path) -> None:
    outcome = generate_project(root, generate, check=True)
    assert outcome.diff == ""
    assert outcome.is_current


def test_the_plugin_writes_the_same_files(tmp_path: Path) -> None:
    protos = GOLDEN / "protos"
    plugin = tmp_path / "protoc-gen-toolkit"
    plugin.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:] = {sys.path!r}\nfrom protoc_gen_toolkit import main\nmain()\n"
    )
    plugin.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(
        [
            *(
                sys.executable,
                "-P",
                "-m",
                "grpc_tools.protoc",
                f"--plugin=protoc-gen-toolkit={plugin}",
                f"--toolkit_out={out}",
            ),
            *("-I.", f"-I{REPOSITORY}", *(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))),
        ],
        cwd=protos,
        check=True,
    )
    made = {path.relative_to(out): path.read_text(encoding="utf-8") for path in out.rglob("*.py")}
    assert made == {
        path.relative_to(GOLDEN): path.read_text(encoding="utf-8") for path in GOLDEN.glob("golden/**/*.py")
    }


def test_the_embedded_descriptor_is_that_of_protoc(tmp_path: Path) -> None:
    """So that protoc's own Python code for a file can be loaded into the same process."""
    protos = GOLDEN / "protos"
    paths = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    command = [sys.executable, "-P", "-m", "grpc_tools.protoc", "-I.", f"-I{REPOSITORY}", f"--python_out={tmp_path}"]
    subprocess.run([*command, *paths], cwd=protos, check=True)
    for path in paths:
        stem = path.removesuffix(".proto").replace("-", "_")
        assert _embedded(GOLDEN / f"{stem}_toolkit.py") == _embedded(tmp_path / f"{stem}_pb2.py"), path


def _embedded(module: Path) -> bytes:
    calls = (node for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    names = {"file", "AddSerializedFile"}
    (argument,) = (call.args[0] for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in names)
    return bytes(ast.literal_eval(argument))


@pytest.mark.parametrize("module", MODULES)
def test_messages_survive_a_round_trip(module: str) -> None:
    for cls in _messages(importlib.import_module(module)):
        filled = _filled(descriptor_pool.Default().FindMessageTypeByName(cls.__proto__), depth=3)
        message = codec.decode(cls, type(filled).SerializeToString(filled))
        again = type(filled).FromString(codec.encode(message))
        assert again == filled
        assert codec.decode(cls, codec.encode(message)) == message


@pytest.mark.parametrize("module", MODULES)
def test_a_fresh_message_is_an_empty_one(module: str) -> None:
    for cls in _messages(importlib.import_module(module)):
        assert codec.encode(cls()) == b""
        assert codec.decode(cls, b"") == cls()


@pytest.mark.parametrize("module", MODULES)
def test_annotations_can_be_resolved(module: str) -> None:
    for cls in _messages(importlib.import_module(module)):
        hints = typing.get_type_hints(cls)
        assert {field.name for field in fields(cls)} <= set(hints)


def test_comments_are_docstrings() -> None:
    comments = importlib.import_module("golden.comments.v1.comments_toolkit")
    assert comments.__doc__ == 'A file comment with """triple quotes""", a backslash \\ and "quotes".'
    assert inspect.getdoc(comments.Mood) == "One line \\\nafter another \\"
    assert inspect.getdoc(comments.CommentsBase.say) == 'Says "hello\\".'
    assert inspect.getdoc(comments.CommentsClient.say) == 'Says "hello\\".'
    assert str(inspect.getdoc(comments.CommentsBase)).startswith('Speaks """.\n\n')


def test_a_contract_says_what_the_proto_says() -> None:
    module = importlib.import_module("golden.cardinalities.v1.cardinalities_toolkit")
    contract = module.CardinalitiesBase.__contract__
    assert contract is module.CardinalitiesClient.__contract__
    assert contract.name == "golden.cardinalities.v1.Cardinalities"
    assert [(m.name, m.attribute, m.client_streaming, m.server_streaming, m.idempotent) for m in contract.methods] == [
        ("Unary", "unary", False, False, True),
        ("ServerStream", "server_stream", False, True, True),
        ("ClientStream", "client_stream", True, False, False),
        ("BothWays", "both_ways", True, True, False),
    ]
    assert {(m.request, m.reply) for m in contract.methods} == {(module.Item, module.Sum), (module.Item, module.Item)}


def test_every_method_of_a_contract_is_there() -> None:
    for module in map(importlib.import_module, MODULES):
        for cls in vars(module).values():
            if isinstance(cls, type) and "__contract__" in vars(cls):
                methods = [method.attribute for method in vars(cls)["__contract__"].methods]
                assert [name for name in vars(cls) if not name.startswith("_")] == methods


def test_presence_is_that_of_the_proto() -> None:
    for module in map(importlib.import_module, MODULES):
        for cls in _messages(module):
            descriptor = descriptor_pool.Default().FindMessageTypeByName(cls.__proto__)
            fresh = cls()
            for field, declared in zip(fields(cls), descriptor.fields, strict=True):
                assert (getattr(fresh, field.name) is None) == declared.has_presence, f"{cls.__proto__}.{declared.name}"


def _messages(scope: Any) -> Iterator[Any]:
    """The message classes of a module, nested ones included."""
    name = scope.__name__ if inspect.ismodule(scope) else scope.__module__
    for each in vars(scope).values():
        if isinstance(each, type) and issubclass(each, gencode.Message) and each.__module__ == name:
            yield each
            yield from _messages(each)


def _filled(descriptor: Descriptor, depth: int) -> ProtobufMessage:
    """protobuf's own message with something in every field; of a oneof in its last."""
    if descriptor.full_name == "toolkit.v1.Tensor":
        return message_factory.GetMessageClass(descriptor)(dtype=11, shape=[2, 3], data=bytes(range(24)))
    if descriptor.file.name.startswith("google/"):
        return message_factory.GetMessageClass(descriptor)()
    pb: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            if value.message_type is None:
                getattr(pb, field.name)[_scalar(key)] = _scalar(value)
            elif depth:
                getattr(pb, field.name)[_scalar(key)].CopyFrom(_filled(value.message_type, depth - 1))
        elif field.message_type is not None and depth:
            item = _filled(field.message_type, depth - 1)
            if field.is_repeated:
                getattr(pb, field.name).extend([item, item])
            else:
                inner = getattr(pb, field.name)
                type(inner).CopyFrom(inner, item)  # a field may be called CopyFrom
        elif field.message_type is None and field.is_repeated:
            getattr(pb, field.name).extend([_scalar(field)] * 2)
        elif field.message_type is None:
            setattr(pb, field.name, _scalar(field))
    return pb  # type: ignore[no-any-return]  # of a class that is made at runtime


def _scalar(field: FieldDescriptor) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return b"\x00\xff" if field.type == FieldDescriptor.TYPE_BYTES else "héllo"
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return math.ldexp(3, -4)
    return field.enum_type.values[-1].number if field.enum_type is not None else 7
