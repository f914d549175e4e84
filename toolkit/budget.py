"""How much memory a message may take once decoded, found out before any of it is taken.

On the wire an empty sub-message is two bytes; decoded it is an object of protobuf's, then one of Python's, with its lists
and dicts: hundreds of bytes. So a message within the limit could still become a hundred times as large. Each message
type has a table of what an occurrence of each field costs at most, and a message that could exceed its budget is walked
through, field by field, before it is decoded. The walk ends where the budget does, which bounds its time as well: an
occurrence costs `FIELD` at least.

The budget is the message's limit, so that bytes and objects together stay within twice the limit. It does not count what
is as large as the bytes themselves: the content of strings and bytes, which protobuf and Python copy once each, and
tensors, which are views. The figures are upper bounds for CPython 3.11 and protobuf's C library, which
tests/test_budget.py measures.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass, fields
from typing import Any, Final

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from toolkit.message import Message, class_of
from toolkit.wire import GROUP, LENGTH, MAX_DEPTH, DecodeError, scan

SMALLEST: Final = 16 << 20
"""Bytes that every message may grow to, however low its limit: that much can be had for little anyway."""
MAX_TENSORS: Final = 16384
"""Tensors in one message."""
FIELD: Final = 64
"""Bytes for one occurrence of any field: protobuf's growing array, a list's slot, a number."""
TEXT: Final = 128
"""For one string or bytes of a repeated field, its content apart."""
ENTRY: Final = 320
"""For an entry of a map: both hash tables, and a key and a value, messages apart."""
UNKNOWN: Final = 192
"""For a field that this side does not know: protobuf's Python objects for it, and its bytes again."""
TENSOR: Final = 1024
"""A tensor: its views and its shape."""
NESTED: Final = 192
"""For a message that can hold tensors: its place, remembered until it is sliced."""
WIDEST: Final = 7
"""For a byte of a string that has a character of four."""
_GC: Final = 16
"""Bytes before each object that Python's collector knows."""


@dataclass(slots=True)
class Cost:
    """What a field costs."""

    each: int
    """Bytes for one occurrence."""
    per_byte: int = 0
    """For each byte of its content: the numbers of a packed field."""
    is_text: bool = False
    fields: Table | None = None
    """Of the message in it."""
    tensors: int = 0


Table = dict[int, Cost]
"""The fields of a message type, by number and wire type as they are on the wire."""
_UNKNOWN: Final = Cost(UNKNOWN)
_GROUP: Final = Cost(UNKNOWN, UNKNOWN // 2)
"""Fields of two bytes, if of the smallest."""
_tables: dict[str, Table] = {}


class Budget:
    """What one message may still take."""

    __slots__ = ("_size", "_tensors", "left")

    def __init__(self, size: int) -> None:
        self._size = self.left = max(size, SMALLEST)
        """Bytes."""
        self._tensors = MAX_TENSORS

    def charge(self, table: Table, buffer: bytes, start: int, end: int, depth: int = 0) -> None:
        """Take from the budget what the message in `buffer[start:end]` costs. Raises DecodeError where there is not enough
        left, where messages are nested too deeply, or where the bytes are no message.
        """
        if depth > MAX_DEPTH:
            raise DecodeError(f"messages nested deeper than {MAX_DEPTH}")
        for number, wire_type, _, body, stop in scan(buffer, start, end, depth):
            cost = table.get(number << 3 | wire_type) or (_GROUP if wire_type == GROUP else _UNKNOWN)
            self.left -= cost.each + cost.per_byte * (stop - body)
            if cost.is_text:
                self.left -= _text_growth(buffer, body, stop)
            if self.left < 0:
                raise self._exceeded()
            if cost.fields is not None:
                self._tensors -= cost.tensors
                if self._tensors < 0:
                    raise DecodeError(f"more than {MAX_TENSORS} tensors in one message")
                self.charge(cost.fields, buffer, body, stop, depth + 1)

    def _exceeded(self) -> DecodeError:
        return DecodeError(
            f"decoded, it would take more than {self._size} bytes of memory, its limit: it has too many small parts. "
            "Numbers take less in a toolkit.v1.Tensor"
        )


def table_of(descriptor: Descriptor) -> Table:
    """The costs of a message type's fields."""
    table = _tables.get(descriptor.full_name)
    if table is None:
        table = _tables[descriptor.full_name] = {}
        for field in descriptor.fields:
            table |= _costs(field)
    return table


def steepest(descriptor: Descriptor) -> int:
    """The most memory that one byte on the wire can become, in any message of this type."""
    seen: dict[int, Table] = {}
    _reach(table_of(descriptor), seen)
    costs = [_UNKNOWN, *(cost for table in seen.values() for cost in table.values())]
    return max(cost.each // 2 + cost.per_byte + WIDEST * cost.is_text for cost in costs)


def _reach(table: Table, seen: dict[int, Table]) -> None:
    if id(table) not in seen:
        seen[id(table)] = table
        for cost in table.values():
            if cost.fields is not None:
                _reach(cost.fields, seen)


def _costs(field: FieldDescriptor) -> Table:
    tag = field.number << 3
    kind = field.type
    if kind in (field.TYPE_STRING, field.TYPE_BYTES):
        return {tag | LENGTH: Cost(TEXT if field.is_repeated else FIELD, is_text=kind == field.TYPE_STRING)}
    if field.message_type is not None:
        return {tag | LENGTH: _message_cost(field.message_type)}
    wire_type, per_byte = 0, 32
    if kind == field.TYPE_ENUM:
        per_byte = 192  # a number that the .proto does not name becomes an object of its own
    elif kind in (field.TYPE_DOUBLE, field.TYPE_FIXED64, field.TYPE_SFIXED64):
        wire_type, per_byte = 1, 8
    elif kind in (field.TYPE_FLOAT, field.TYPE_FIXED32, field.TYPE_SFIXED32):
        wire_type, per_byte = 5, 16
    alone = Cost(FIELD, per_byte if kind == field.TYPE_ENUM else 0)
    return (
        {tag | wire_type: alone, tag | LENGTH: Cost(FIELD, per_byte)} if field.is_repeated else {tag | wire_type: alone}
    )


def _message_cost(descriptor: Descriptor) -> Cost:
    if descriptor.full_name == "toolkit.v1.Tensor":
        return Cost(TENSOR, fields=table_of(descriptor), tensors=1)
    if descriptor.GetOptions().map_entry:
        return Cost(ENTRY, fields=table_of(descriptor))
    theirs = FIELD + 24 + 24 * len(descriptor.fields)
    return Cost(theirs + NESTED + _size(class_of(descriptor.full_name)), fields=table_of(descriptor))


def _size(cls: type[Any] | None) -> int:
    """Of an instance with its containers, all of them empty."""
    if cls is None or not issubclass(cls, Message):
        return 0
    containers = (f.default_factory for f in fields(cls) if f.default_factory is not MISSING)  # type: ignore[arg-type]
    parts = (sys.getsizeof(made) for made in (make() for make in containers) if isinstance(made, list | dict))
    return cls.__basicsize__ + _GC + sum(parts)


def _text_growth(buffer: bytes, start: int, end: int) -> int:
    """How much more than its bytes a string takes at most: its widest character sets the width of all, and Python holds
    the narrow string while it makes the wide one.
    """
    if end - start <= 4096 and buffer[start:end].isascii():
        return 0
    highest = int(np.frombuffer(buffer, np.uint8, end - start, start).max(initial=0))
    return (end - start) * (0 if highest < 0xC4 else 5 if highest < 0xF0 else WIDEST)
