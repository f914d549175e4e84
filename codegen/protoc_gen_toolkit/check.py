"""What Python cannot name, or could only name twice. All of it is found before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from protoc_gen_toolkit import names
from protoc_gen_toolkit.schema import Enum, File, Message, Position, Problem, Schema, Service


def check(schema: Schema) -> list[Problem]:
    """Every problem of the schema, in the order of the files and of their lines."""
    found = [*schema.problems, *_module_clashes(schema.files)]
    for file in schema.files:
        found += _modules(file)
        found += (Problem(file.path, position, message) for position, message in (*_underscores(file), *_clashes(file)))
    order = {file.path: i for i, file in enumerate(schema.files)}
    return sorted(found, key=lambda each: (order[each.path], each.position.line, each.position.column))


class _Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def position(self) -> Position: ...


def _modules(file: File) -> Iterator[Problem]:
    if names.is_protobuf(file.path):
        yield Problem(
            file.path, Position(), "files under google/ keep protobuf's own classes; move it to a folder of your own"
        )
        return
    for path, position in ((file.path, Position()), *file.imports.items()):
        message = None if names.is_protobuf(path) else names.module_problem(path)
        if message is not None:
            yield Problem(file.path, position, message)


def _module_clashes(files: Iterable[File]) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for file in files:
        module = names.module(file.path)
        other = seen.setdefault(module, file.path)
        if other != file.path:
            yield Problem(file.path, Position(), f"{other} becomes the module {module} too; rename one of them")


def _underscores(file: File) -> Iterator[tuple[Position, str]]:
    for what, each in _everything(file):
        if each.name.startswith("_"):
            yield (
                each.position,
                f"{what} {each.name}: names with a leading underscore are kept for generated code; rename it",
            )


def _everything(file: File) -> Iterator[tuple[str, _Named]]:
    yield from _types(file.messages, file.enums)
    for service in file.services:
        yield "service", service
        yield from (("method", method) for method in service.methods)


def _types(messages: Iterable[Message], enums: Iterable[Enum]) -> Iterator[tuple[str, _Named]]:
    for enum in enums:
        yield "enum", enum
        yield from (("enum value", value) for value in enum.values)
    for message in messages:
        yield "message", message
        yield from (("field", field) for field in message.fields)
        yield from _types(message.messages, message.enums)


def _clashes(file: File) -> Iterator[tuple[Position, str]]:
    classes = {names.escape(each.name): f"{what} {each.name}" for what, each in _top_level(file)}
    for service in file.services:
        for name in (names.skeleton(service.name), names.client(service.name)):
            other = classes.setdefault(name, f"service {service.name}")
            if other != f"service {service.name}":
                yield (
                    service.position,
                    f"service {service.name} becomes a class {name}, and so does {other}; rename one of them",
                )
        yield from _method_clashes(service)


def _top_level(file: File) -> Iterator[tuple[str, _Named]]:
    yield from (("message", message) for message in file.messages)
    yield from (("enum", enum) for enum in file.enums)


def _method_clashes(service: Service) -> Iterator[tuple[Position, str]]:
    seen: dict[str, str] = {}
    for method in service.methods:
        name = names.attribute(method.name)
        other = seen.setdefault(name, method.name)
        if other != method.name:
            yield (
                method.position,
                f"methods {other} and {method.name} are both `{name}` in Python; rename one of them",
            )
