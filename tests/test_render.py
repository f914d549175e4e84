"""Whatever things are called: each annotation in generated code means the type that the .proto means."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from itertools import count
from types import ModuleType
from typing import Any

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protoc_gen_toolkit import generate

from toolkit import codec
from toolkit.message import class_of

NAMES = [
    "Part",
    "Kind",
    "Outer",
    "list",
    "str",
    "int",
    "dict",
    "bytes",
    "float",
    "class",
    "None",
    "Part_",
    "field",
    "tuple",
]
_numbers = count()


@st.composite
def messages(draw: st.DrawFn, depth: int = 2) -> DescriptorProto:
    """Nested types and, later, fields with names from one small list, so that they hide each other."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6))
    kinds = [draw(st.sampled_from(["message", "enum", "field", "field"])) for _ in names]
    message = DescriptorProto()
    for name, kind in zip(names, kinds, strict=True):
        if kind == "message" and depth:
            nested = draw(messages(depth - 1))
            nested.name = name
            message.nested_type.append(nested)
        elif kind == "enum":
            message.enum_type.append(_enum(name))
        else:
            message.field.add(name=name)
    return message


def _enum(name: str) -> EnumDescriptorProto:
    enum = EnumDescriptorProto(name=name)
    enum.value.add(name=f"ZERO_OF_{name}", number=0)
    return enum


@st.composite
def files(draw: st.DrawFn) -> FileDescriptorProto:
    file = FileDescriptorProto(syntax="proto3")
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=2, max_size=6)):
        if draw(st.booleans()):
            file.enum_type.append(_enum(name))
        else:
            message = draw(messages())
            message.name = name
            file.message_type.append(message)
    types = [*_types("", file)]
    for message in _all(file.message_type):
        for i, field in enumerate(message.field, 1):
            field.number, field.json_name = i, f"j{i}"
            field.label = draw(
                st.sampled_from([FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED])
            )
            type_name, field.type = draw(st.sampled_from([*types, ("", FieldDescriptorProto.TYPE_STRING)]))
            if type_name:
                field.type_name = type_name
    return file


def _all(found: Any) -> Iterator[DescriptorProto]:
    for message in found:
        yield message
        yield from _all(message.nested_type)


def _types(prefix: str, scope: Any) -> Iterator[tuple[str, Any]]:
    for enum in scope.enum_type:
        yield f"{prefix}.{enum.name}", FieldDescriptorProto.TYPE_ENUM
    for message in scope.message_type if isinstance(scope, FileDescriptorProto) else scope.nested_type:
        yield f"{prefix}.{message.name}", FieldDescriptorProto.TYPE_MESSAGE
        yield from _types(f"{prefix}.{message.name}", message)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files())
def test_annotations_and_defaults_mean_what_the_proto_means(file: FileDescriptorProto) -> None:
    _give_a_path(file)
    response = generate(CodeGeneratorRequest(file_to_generate=[file.name], proto_file=[file]))
    assert not response.error
    module = ModuleType(file.name.removesuffix(".proto").replace("/", "."))
    sys.modules[module.__name__] = module  # dataclasses looks its module up
    exec(compile(response.file[0].content, file.name, "exec"), module.__dict__)
    for name, message in _by_name(file.package, file.message_type):
        cls: Any = class_of(name)
        hints = typing.get_type_hints(cls)
        names = [each.name for each in cls.__dataclass_fields__.values()]
        for field, attribute in zip(message.field, names, strict=True):
            assert hints[attribute] == _expected(field), f"{name}.{field.name}\n{response.file[0].content}"
        assert codec.encode(cls()) == b""
        assert codec.decode(cls, b"") == cls()


def _give_a_path(file: FileDescriptorProto) -> None:
    """Of its own: a process can load a path once."""
    number = next(_numbers)
    file.name, file.package = f"render/f{number}.proto", f"render.f{number}"
    for message in _all(file.message_type):
        for field in message.field:
            if field.type_name:
                field.type_name = f".{file.package}{field.type_name}"


def _by_name(prefix: str, found: Any) -> Iterator[tuple[str, DescriptorProto]]:
    for message in found:
        yield f"{prefix}.{message.name}", message
        yield from _by_name(f"{prefix}.{message.name}", message.nested_type)


def _expected(field: FieldDescriptorProto) -> Any:
    item: Any = class_of(field.type_name.removeprefix(".")) if field.type_name else str
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return list[item]
    return item | None if field.type == FieldDescriptorProto.TYPE_MESSAGE else item
