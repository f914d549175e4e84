"""What a .proto says, as frozen dataclasses that know no descriptors. `read` makes them from protoc's request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from google.protobuf import descriptor_pb2 as pb
from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

OLDEST_EDITION = pb.EDITION_PROTO2
NEWEST_EDITION = pb.EDITION_2024


@dataclass(frozen=True, slots=True)
class Position:
    """Where a name stands in its file, counted from 1."""

    line: int = 1
    column: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a file is refused."""

    path: str
    position: Position
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.position.line}:{self.position.column}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Type:
    """The type of one item of a field."""

    kind: Literal["scalar", "enum", "message"]
    name: str
    """A Python builtin, or the full name of an enum or message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    name: str
    type: Type
    shape: Literal["plain", "optional", "repeated", "map"]
    """`optional`: it is known whether it was set."""
    key: Type | None = None
    oneof: str = ""
    comment: str = ""
    deprecated: bool = False
    position: Position = Position()


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A name of an enum. Two may share a number."""

    name: str
    number: int
    comment: str = ""
    deprecated: bool = False
    position: Position = Position()


@dataclass(frozen=True, kw_only=True, slots=True)
class Enum:
    name: str
    full_name: str
    values: tuple[Value, ...]
    comment: str = ""
    deprecated: bool = False
    position: Position = Position()


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    name: str
    full_name: str
    fields: tuple[Field, ...]
    messages: tuple[Message, ...]
    enums: tuple[Enum, ...]
    oneofs: Mapping[str, str]
    """The comment of each oneof."""
    comment: str = ""
    deprecated: bool = False
    position: Position = Position()

    def member_names(self) -> Iterator[str]:
        """Fields and nested types: protobuf gives each a name of its own."""
        yield from (field.name for field in self.fields)
        yield from (message.name for message in self.messages)
        yield from (enum.name for enum in self.enums)


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    name: str
    request: str
    reply: str
    client_streaming: bool
    server_streaming: bool
    idempotent: bool
    max_message_bytes: int = 0
    """The option (toolkit.v1.method).max_message_bytes; 0 where it is not set."""
    comment: str = ""
    deprecated: bool = False
    position: Position = Position()


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    name: str
    full_name: str
    methods: tuple[Method, ...]
    comment: str = ""
    deprecated: bool = False
    position: Position = Position()


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    path: str
    """As protoc names it: relative to the include root, with slashes."""
    imports: Mapping[str, Position]
    messages: tuple[Message, ...]
    enums: tuple[Enum, ...]
    services: tuple[Service, ...]
    descriptor: tuple[bytes, ...]
    """The serialized FileDescriptorProto, cut between declarations."""
    comment: str = ""

    def type_names(self) -> Iterator[str]:
        yield from (enum.name for enum in self.enums)
        yield from (message.name for message in self.messages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Symbol:
    """Where a message or enum is declared."""

    path: str
    """The file."""
    names: tuple[str, ...]
    """Its name, those that it is nested in first."""
    zero: str = ""
    """The first name that an enum has for 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    files: tuple[File, ...]
    """The files to generate from."""
    symbols: Mapping[str, Symbol]
    """By full name, those of imported files included."""
    problems: tuple[Problem, ...]
    """What this generator cannot do, found while reading."""


def read(request: CodeGeneratorRequest) -> Schema:
    """The request's files to generate, in the request's order."""
    files = {file.name: file for file in request.proto_file}
    readers = [_Reader(files[name]) for name in request.file_to_generate]
    return Schema(
        files=tuple(reader.file() for reader in readers),
        symbols={name: symbol for file in request.proto_file for name, symbol in _symbols(file)},
        problems=tuple(problem for reader in readers for problem in reader.problems),
    )


_SCALARS: Mapping[int, str] = {
    pb.FieldDescriptorProto.TYPE_DOUBLE: "float",
    pb.FieldDescriptorProto.TYPE_FLOAT: "float",
    pb.FieldDescriptorProto.TYPE_BOOL: "bool",
    pb.FieldDescriptorProto.TYPE_STRING: "str",
    pb.FieldDescriptorProto.TYPE_BYTES: "bytes",
}
"""All others are integers."""

_Path = tuple[int, ...]
"""A place in a file, as SourceCodeInfo.Location.path spells it: numbers of fields and indices, in turn."""
_NAME = 1
_METHOD_OPTIONS = 51107
"""The number of the extension toolkit.v1.method."""
"""In every descriptor the name is field 1."""


class _Reader:
    """Reads one file. What it cannot express it adds to `problems`, and goes on."""

    def __init__(self, file: pb.FileDescriptorProto) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._locations = {tuple(place.path): place for place in file.source_code_info.location}
        self._prefix = f"{file.package}." if file.package else ""

    def file(self) -> File:
        file = self._file
        if file.syntax == "editions" and not OLDEST_EDITION <= file.edition <= NEWEST_EDITION:
            self._refuse(
                (14,), f"{pb.Edition.Name(file.edition)} is newer than this generator knows; use edition 2024 or older"
            )
        self._refuse_extensions((7,), file.extension)
        return File(
            path=file.name,
            imports={path: self._position((3, i)) for i, path in enumerate(file.dependency)},
            messages=tuple(self._message((4, i), self._prefix, each) for i, each in enumerate(file.message_type)),
            enums=tuple(self._enum((5, i), self._prefix, each) for i, each in enumerate(file.enum_type)),
            services=tuple(self._service((6, i), each) for i, each in enumerate(file.service)),
            descriptor=tuple(_pieces(file)),
            comment=self._file_comment(),
        )

    def _message(self, path: _Path, prefix: str, message: pb.DescriptorProto) -> Message:
        name = f"{prefix}{message.name}"
        nested = [(i, each) for i, each in enumerate(message.nested_type)]
        entries = {f".{name}.{each.name}": each for _, each in nested if each.options.map_entry}
        if message.extension_range:
            self._refuse((*path, 5), "extension ranges are not supported; use fields, or google.protobuf.Any")
        self._refuse_extensions((*path, 6), message.extension)
        return Message(
            name=message.name,
            full_name=name,
            fields=tuple(self._field((*path, 2, i), each, message, entries) for i, each in enumerate(message.field)),
            messages=tuple(self._message((*path, 3, i), f"{name}.", m) for i, m in nested if not m.options.map_entry),
            enums=tuple(self._enum((*path, 4, i), f"{name}.", each) for i, each in enumerate(message.enum_type)),
            oneofs={oneof.name: self._comment((*path, 8, i)) for i, oneof in enumerate(message.oneof_decl)},
            comment=self._comment(path),
            deprecated=message.options.deprecated,
            position=self._position(path),
        )

    def _field(
        self,
        path: _Path,
        field: pb.FieldDescriptorProto,
        message: pb.DescriptorProto,
        entries: Mapping[str, pb.DescriptorProto],
    ) -> Field:
        self._refuse_field(path, field)
        entry = entries.get(field.type_name)
        is_in_oneof = field.HasField("oneof_index") and not field.proto3_optional
        return Field(
            name=field.name,
            type=_type(field if entry is None else entry.field[1]),
            shape="map" if entry is not None else self._shape(field),
            key=None if entry is None else _type(entry.field[0]),
            oneof=message.oneof_decl[field.oneof_index].name if is_in_oneof else "",
            comment=self._comment(path),
            deprecated=field.options.deprecated,
            position=self._position(path),
        )

    def _shape(self, field: pb.FieldDescriptorProto) -> Literal["plain", "optional", "repeated"]:
        if field.label == pb.FieldDescriptorProto.LABEL_REPEATED:
            return "repeated"
        if field.HasField("oneof_index") or field.type == pb.FieldDescriptorProto.TYPE_MESSAGE:
            return "optional"
        return "plain" if self._presence(field) == pb.FeatureSet.IMPLICIT else "optional"

    def _presence(self, field: pb.FieldDescriptorProto) -> int:
        """Source: https://protobuf.dev/editions/features/#field_presence."""
        if self._file.syntax != "editions":
            return pb.FeatureSet.IMPLICIT if self._file.syntax == "proto3" else pb.FeatureSet.EXPLICIT
        own, whole = field.options.features, self._file.options.features
        return own.field_presence or whole.field_presence or pb.FeatureSet.EXPLICIT

    def _refuse_field(self, path: _Path, field: pb.FieldDescriptorProto) -> None:
        encoding = field.options.features.message_encoding or self._file.options.features.message_encoding
        is_message = field.type == pb.FieldDescriptorProto.TYPE_MESSAGE
        if field.type == pb.FieldDescriptorProto.TYPE_GROUP:
            self._refuse(
                path,
                f"group {field.type_name.rpartition('.')[2]}: groups are not supported; declare a message and a field of it",
            )
        elif is_message and encoding == pb.FeatureSet.DELIMITED:
            self._refuse(
                path, f"field {field.name}: message_encoding = DELIMITED is not supported; leave it LENGTH_PREFIXED"
            )
        is_required = field.label == pb.FieldDescriptorProto.LABEL_REQUIRED
        if is_required or self._presence(field) == pb.FeatureSet.LEGACY_REQUIRED:
            self._refuse(
                path,
                f"field {field.name}: required fields are not supported; make it optional and check it in the service",
            )

    def _refuse_extensions(self, path: _Path, extensions: Iterable[pb.FieldDescriptorProto]) -> None:
        """Custom options extend google.protobuf.*Options. They need no code, so they may stay."""
        for i, extension in enumerate(extensions):
            if not extension.extendee.startswith(".google.protobuf."):
                self._refuse(
                    (*path, i),
                    f"extension {extension.name}: extensions are not supported; use fields, or google.protobuf.Any",
                )

    def _enum(self, path: _Path, prefix: str, enum: pb.EnumDescriptorProto) -> Enum:
        return Enum(
            name=enum.name,
            full_name=f"{prefix}{enum.name}",
            values=tuple(self._value((*path, 2, i), each) for i, each in enumerate(enum.value)),
            comment=self._comment(path),
            deprecated=enum.options.deprecated,
            position=self._position(path),
        )

    def _value(self, path: _Path, value: pb.EnumValueDescriptorProto) -> Value:
        return Value(
            name=value.name,
            number=value.number,
            comment=self._comment(path),
            deprecated=value.options.deprecated,
            position=self._position(path),
        )

    def _service(self, path: _Path, service: pb.ServiceDescriptorProto) -> Service:
        return Service(
            name=service.name,
            full_name=f"{self._prefix}{service.name}",
            methods=tuple(self._method((*path, 2, i), each) for i, each in enumerate(service.method)),
            comment=self._comment(path),
            deprecated=service.options.deprecated,
            position=self._position(path),
        )

    def _method(self, path: _Path, method: pb.MethodDescriptorProto) -> Method:
        return Method(
            name=method.name,
            request=method.input_type.removeprefix("."),
            reply=method.output_type.removeprefix("."),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
            idempotent=method.options.idempotency_level != pb.MethodOptions.IDEMPOTENCY_UNKNOWN,
            max_message_bytes=_max_message_bytes(method.options),
            comment=self._comment(path),
            deprecated=method.options.deprecated,
            position=self._position(path),
        )

    def _refuse(self, path: _Path, message: str) -> None:
        self.problems.append(Problem(self._file.name, self._position(path), message))

    def _position(self, path: _Path) -> Position:
        """Of the declaration's name; of the whole, where it has none."""
        place = self._locations.get((*path, _NAME)) or self._locations.get(path)
        return Position(place.span[0] + 1, place.span[1] + 1) if place else Position()

    def _comment(self, path: _Path) -> str:
        place = self._locations.get(path)
        both = (place.leading_comments, place.trailing_comments) if place else ()
        return "\n\n".join(text for text in map(_clean, both) if text)

    def _file_comment(self) -> str:
        """What stands above `syntax` (12), `edition` (14) or `package` (2); above a blank line it counts as well."""
        for path in ((12,), (14,), (2,)):
            place = self._locations.get(path)
            detached = place.leading_detached_comments[-1:] if place else ()
            for text in (place.leading_comments if place else "", *detached):
                if _clean(text):
                    return _clean(text)
        return ""


def _max_message_bytes(options: pb.MethodOptions) -> int:
    """Read by number, since the extension of toolkit/v1/options.proto may be unknown to this process."""
    found = 0
    for extension in _raw_fields(options.SerializeToString()):
        if extension.field_number == _METHOD_OPTIONS:
            found = next((field.data for field in _raw_fields(extension.data) if field.field_number == 1), found)
    return found


def _raw_fields(data: bytes) -> list[Any]:
    return list(cast("Iterable[Any]", UnknownFieldSet(Empty.FromString(data))))


def _type(field: pb.FieldDescriptorProto) -> Type:
    name = field.type_name.removeprefix(".")
    if field.type == pb.FieldDescriptorProto.TYPE_ENUM:
        return Type(kind="enum", name=name)
    return Type(kind="message", name=name) if name else Type(kind="scalar", name=_SCALARS.get(field.type, "int"))


def _symbols(file: pb.FileDescriptorProto) -> Iterator[tuple[str, Symbol]]:
    def walk(
        names: tuple[str, ...], messages: Iterable[pb.DescriptorProto], enums: Iterable[pb.EnumDescriptorProto]
    ) -> Iterator[tuple[str, Symbol]]:
        for enum in enums:
            path = (*names, enum.name)
            zero = next((value.name for value in enum.value if value.number == 0), "")
            yield ".".join((*package, *path)), Symbol(path=file.name, names=path, zero=zero)
        for message in messages:
            path = (*names, message.name)
            yield ".".join((*package, *path)), Symbol(path=file.name, names=path)
            yield from walk(path, message.nested_type, message.enum_type)

    package = (file.package,) if file.package else ()
    return walk((), file.message_type, file.enum_type)


def _clean(comment: str) -> str:
    """Without the space that follows `//`, and without blank lines around."""
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.split("\n")).strip("\n")


def _pieces(file: pb.FileDescriptorProto) -> Iterator[bytes]:
    """The descriptor as protoc embeds it in its own Python code, so that both can live in one process.

    Serialized fields may be put one behind the other, so a piece is a declaration: a change shows in one line.
    """
    bare = pb.FileDescriptorProto()
    bare.CopyFrom(file)
    bare.ClearField("source_code_info")
    for field in _all_fields(bare):
        if field.json_name == _json_name(field.name):
            field.ClearField("json_name")
    joined = b""
    for name in ("head", "message_type", "enum_type", "service", "extension", "tail"):
        for piece in _cut(bare, name):
            joined += piece
            yield piece
    if pb.FileDescriptorProto.FromString(joined) != bare:
        raise AssertionError(f"{file.name}: its descriptor does not survive being cut")


_HEAD = ("name", "package", "dependency")
_DECLARATIONS = ("message_type", "enum_type", "service", "extension")


def _cut(file: pb.FileDescriptorProto, name: str) -> Iterator[bytes]:
    if name in _DECLARATIONS:
        for each in getattr(file, name):
            piece = pb.FileDescriptorProto()
            getattr(piece, name).append(each)
            yield piece.SerializeToString(deterministic=True)
        return
    rest = pb.FileDescriptorProto()
    rest.CopyFrom(file)
    for field, _ in file.ListFields():
        if field.name in _DECLARATIONS or (field.name in _HEAD) != (name == "head"):
            rest.ClearField(field.name)  # type: ignore[arg-type]  # a field's name by its descriptor
    if rest.ListFields():
        yield rest.SerializeToString(deterministic=True)


def _all_fields(file: pb.FileDescriptorProto) -> Iterator[pb.FieldDescriptorProto]:
    def walk(messages: Iterable[pb.DescriptorProto]) -> Iterator[pb.FieldDescriptorProto]:
        for message in messages:
            yield from message.field
            yield from message.extension
            yield from walk(message.nested_type)

    yield from file.extension
    yield from walk(file.message_type)


def _json_name(name: str) -> str:
    """protoc's default: `first_name` → `firstName`."""
    first, *rest = name.split("_")
    return first + "".join(part[:1].upper() + part[1:] for part in rest)
