"""Plain values → YAML that every parser reads alike, with comments above the keys that they explain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

Comments = Mapping[tuple[str, ...], str]
"""The way to a key → what stands above it."""

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*", re.ASCII)
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
"""What some parser takes for something else than text."""


def render(values: Mapping[str, Any], comments: Comments | None = None) -> str:
    """One document. Keys stay in their order."""
    return "\n".join(_lines(values, comments or {}, ())) + "\n"


def comment(text: str, indent: int = 0) -> str:
    """`text` as a comment: no line of it can be anything else."""
    return "\n".join(f"{' ' * indent}# {_harmless(line)}".rstrip() for line in text.splitlines())


def _harmless(line: str) -> str:
    return "".join(char if char.isprintable() else " " for char in line)


def _lines(values: Mapping[str, Any], comments: Comments, key: tuple[str, ...]) -> Iterator[str]:
    indent = 2 * len(key)
    for index, (name, value) in enumerate(values.items()):
        here = (*key, name)
        if here in comments:
            yield from [""] if index and len(key) < 2 else []
            yield comment(comments[here], indent)
        if isinstance(value, Mapping) and any(each[: len(here)] == here and each != here for each in comments):
            yield f"{' ' * indent}{_dump(name)}:"
            yield from _lines(value, comments, here)
        else:
            yield from (f"{' ' * indent}{line}" for line in _dump({name: value}).split("\n"))


def _dump(value: Any) -> str:
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=1 << 30, default_flow_style=False)
    return text.removesuffix("\n").removesuffix("\n...")


class _Dumper(yaml.SafeDumper):
    """No anchors; text in quotes unless nobody can take it for anything else: single ones where that spares escapes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _WORDS
    is_json = '"' in text and "'" not in text and text.isascii() and text.isprintable()
    style = None if is_plain else "'" if is_json else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _list(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.SequenceNode:
    """Of scalars on one line."""
    is_short = not any(isinstance(each, list | dict) for each in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=is_short)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
