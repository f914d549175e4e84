"""YAML from outside, read with bounds: plain JSON-like values, and the place of every key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from toolkit.errors import GraphError

Key = tuple[str | int, ...]
"""The way to a value: `("services", "gpt2", "replicas")`."""

MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000
"""Counted after anchors are followed, so that a few lines cannot unfold into gigabytes."""
MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is said."""

    source: str
    """A file's path, or an option of the command line as it was typed."""
    line: int = 0
    """0: the source has no lines."""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    place: Place
    key: Key
    message: str

    def __str__(self) -> str:
        key = ".".join(str(part) for part in self.key)
        return f"{self.place}: {key}: {self.message}" if key else f"{self.place}: {self.message}"


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says. Problems are those of YAML itself; the values beside them are still good."""

    sources: tuple[str, ...]
    """Of the values: one, or several that were laid over one another."""
    values: Any
    places: Mapping[Key, Place]
    problems: tuple[Problem, ...] = ()

    def place(self, key: Key) -> Place:
        """Of `key`, or of the nearest thing around it."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key) or Place(self.sources[0], 1)

    def problem(self, key: Key, message: str) -> Problem:
        return Problem(self.place(key), key, message)


def read_document(path: Path) -> Document:
    """Read one YAML document. Raises GraphError where there is no tree to speak of: no file, not text, not YAML."""
    return read_text(_read_file(path), lambda line: Place(str(path), line), str(path))


def read_text(text: str, place: Callable[[int], Place], source: str) -> Document:
    """As `read_document`, for text from elsewhere. `place` tells that of a line."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(mark.line + 1) if mark else Place(source)
        column = f":{mark.column + 1}" if mark and where.line else ""
        raise GraphError(f"{where}{column}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise GraphError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise GraphError(f"{source}: nested too deeply; {MAX_DEPTH} levels are the limit") from None
    reader = _Reader(source, place)
    values = None if root is None else reader.read(root, ())
    return Document((source,), values, reader.places, tuple(reader.problems))


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file") from None
    except OSError as error:
        raise GraphError(f"{path}: cannot be read: {error.strerror}") from None
    if len(found) > MAX_BYTES:
        raise GraphError(f"{path}: larger than {MAX_BYTES // 1024} KiB, the limit of a graph file")
    try:
        return found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        raise GraphError(f"{path}:{line}: not UTF-8 text") from None


class _Loader(yaml.SafeLoader):
    """The scalars of YAML 1.2: `no` is text, `1:30` is text, a date is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own class attribute)


_STANDARD = "tag:yaml.org,2002:"
for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
    ("merge", r"<<$", ["<"]),
):
    _Loader.add_implicit_resolver(_STANDARD + _tag, re.compile(_pattern), _first)


class _TooMuchError(Exception):
    pass


@dataclass(slots=True)
class _Reader:
    source: str
    place: Callable[[int], Place]
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    count: int = 0

    def read(self, root: Node, key: Key) -> Any:
        try:
            return self._value(root, key)
        except _TooMuchError as error:
            raise GraphError(f"{self.source}: {error}") from None

    def _value(self, node: Node, key: Key) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _TooMuchError(f"more than {MAX_VALUES} values, anchors followed")
        if len(key) > MAX_DEPTH:
            raise _TooMuchError(f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(node, MappingNode) and node.tag == _STANDARD + "map":
            return self._mapping(node, key)
        if isinstance(node, SequenceNode) and node.tag == _STANDARD + "seq":
            return [self._item(item, (*key, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node, key)
        return self._complain(node, key, f"the tag {node.tag!r} is not accepted; plain YAML only")

    def _item(self, node: Node, key: Key) -> Any:
        self.places[key] = self._place(node)
        return self._value(node, key)

    def _mapping(self, node: MappingNode, key: Key) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name_node, value_node, is_own in self._pairs(node, key):
            name = self._name(name_node, key)
            if name is None:
                continue
            here = (*key, name)
            if name not in found:
                self.places[here] = self._place(name_node)
                found[name] = self._value(value_node, here)
            elif is_own:
                self._complain(name_node, here, f"written twice; the first is on line {self.places[here].line}")
        return found

    def _pairs(self, node: MappingNode, key: Key, depth: int = 0) -> Iterator[tuple[Node, Node, bool]]:
        """The pairs of a mapping, then those that `<<: *anchor` brings in, which yield to its own."""
        merged: list[Node] = []
        for name, value in node.value:
            if name.tag == _STANDARD + "merge":
                merged.extend(value.value if isinstance(value, SequenceNode) else [value])
            else:
                yield name, value, depth == 0
        for other in merged:
            self.count += 1
            if depth > MAX_DEPTH or self.count > MAX_VALUES:
                raise _TooMuchError("too many << merges")
            if isinstance(other, MappingNode):
                yield from self._pairs(other, key, depth + 1)
            else:
                self._complain(other, key, "<< takes a mapping or a list of mappings")

    def _name(self, node: Node, key: Key) -> str | None:
        if isinstance(node, ScalarNode) and node.tag == _STANDARD + "str":
            name = self._scalar(node, key)
            return name if isinstance(name, str) else None
        self._complain(node, key, f"a key must be text; quote it: {_shown(node)}")
        return None

    def _scalar(self, node: ScalarNode, key: Key) -> Any:
        text = str(node.value)
        match node.tag.removeprefix(_STANDARD):
            case "str":
                return text if _is_plain(text) else self._complain(node, key, "has a character that no text can carry")
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" if len(text) <= 20:
                return self._number(node, key, _int)
            case "float":
                return self._number(node, key, float)
            case "int":
                return self._complain(node, key, f"too large a number: {text[:20]}…")
        return self._complain(node, key, f"the tag {node.tag!r} is not accepted; plain YAML only")

    def _number(self, node: ScalarNode, key: Key, convert: Callable[[str], float]) -> float | None:
        try:
            value = convert(str(node.value))
        except ValueError:
            value = math.inf
        if math.isfinite(value):
            return value
        self._complain(node, key, f"not a finite number: {_shown(node)}")
        return None

    def _complain(self, node: Node, key: Key, message: str) -> None:
        self.problems.append(Problem(self._place(node), key, message))

    def _place(self, node: Node) -> Place:
        return self.place(node.start_mark.line + 1)


def _int(text: str) -> int:
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _is_plain(text: str) -> bool:
    """No NUL and no half of a surrogate pair: neither fits into an environment or a JSON text."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _shown(node: Node) -> str:
    text = str(node.value) if isinstance(node, ScalarNode) else "a list or a mapping"
    return repr(text if len(text) <= 40 else text[:39] + "…")
