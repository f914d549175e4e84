"""How much memory a message may take once decoded, found out before any of it is taken.

On the wire an empty sub-message is two bytes; decoded it is an object of protobuf's, then one of Python's, with its lists
and dicts: hundreds of bytes. So a message within the limit could still become a hundred times as large. Each message
type has a table of what an occurrence of each field costs at most, and a message that could exceed its budget is walked
through, field by field, before it is decoded. The walk ends where the budget does, which bounds its time as well: an
occurrence costs `FIELD` at least.

Time is bounded likewise where it grows faster than the message: protobuf's map of integers puts keys into one chain whose
lower bits, the upper half folded in, are equal, and looks through all of it for each.

The budget is the message's limit, so that bytes and objects together stay within twice the limit. It does not count what
is as large as the bytes themselves: the content of strings and bytes, which protobuf and Python copy once each, and
tensors, which are views. The figures are upper bounds for CPython 3.11 and protobuf's C library, which
tests/test_budget.py measures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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
FIELD: Final = 96
"""Bytes for one occurrence of any field: protobuf's growing array, a list's slot, a number. A little more than these
take, for it bounds the time of the walk too: at the default limit 700 000 fields, which is less than a second.
"""
TEXT: Final = 160
"""For one string or bytes of a repeated field, its content apart."""
ENTRY: Final = 224
"""For an entry of a map: both hash tables. Its key and its value count as fields."""
UNKNOWN: Final = 192
"""For a field that this side does not know: protobuf's Python objects for it, and its bytes again."""
TENSOR: Final = 1024
"""A tensor: its views and its shape."""
NESTED: Final = 192
"""For a message that can hold tensors: its place, remembered until it is sliced."""
WIDEST: Final = 7
"""For a byte of a string that has a character of four."""
CHAINED: Final = 4096
"""Chains that the keys of a map are counted in; protobuf has more for a map as large as to matter."""
MAX_STEPS: Final = 50_000_000
"""Along the chains of all maps of a message: a tenth of a second. 10 000 keys in one chain are as many."""
LONG_CHAIN: Final = 32 << 10
"""Bytes of a message that has no room for that many keys."""
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
    is_single: bool = False
    """Occurrences of it are parts of one message."""
    is_entry: bool = False
    hash: Callable[[bytes], int] | None = None
    """Of the integer that is the key of a map."""
    tensors: int = 0


Table = dict[int, Cost]
"""The fields of a message type, by number and wire type as they are on the wire."""
_UNKNOWN: Final = Cost(UNKNOWN)
_GROUP: Final = Cost(UNKNOWN, UNKNOWN // 2)
"""Fields of two bytes, if of the smallest."""
_tables: dict[str, Table] = {}
_LONG: Final = frozenset({FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_SINT64})
_ZIGZAG: Final = frozenset({FieldDescriptor.TYPE_SINT32, FieldDescriptor.TYPE_SINT64})
_FIXED_32: Final = frozenset({FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32, FieldDescriptor.TYPE_FLOAT})
_FIXED_64: Final = frozenset({FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64, FieldDescriptor.TYPE_DOUBLE})


class Budget:
    """What one message may still take."""

    __slots__ = ("_size", "_steps", "_tensors", "left")

    def __init__(self, size: int) -> None:
        self._size = self.left = max(size, SMALLEST)
        """Bytes."""
        self._tensors = MAX_TENSORS
        self._steps = MAX_STEPS

    def charge(
        self,
        table: Table,
        buffer: bytes,
        start: int,
        end: int,
        depth: int = 0,
        parts: dict[int, Any] | None = None,
        chains: dict[int, int] | None = None,
    ) -> None:
        """Take from the budget what the message in `buffer[start:end]` costs. Raises DecodeError where there is not enough
        left, where messages are nested too deeply, or where the bytes are no message.

        `parts` is what other occurrences of this message have left here, `chains` the keys of the map that this is an
        entry of.
        """
        parts = {} if parts is None else parts
        if depth > MAX_DEPTH:
            raise DecodeError(f"messages nested deeper than {MAX_DEPTH}")
        for number, wire_type, _, body, stop in scan(buffer, start, end, depth):
            key = number << 3 | wire_type
            cost = table.get(key) or (_GROUP if wire_type == GROUP else _UNKNOWN)
            self.left -= cost.each + cost.per_byte * (stop - body)
            if cost.is_text:
                self.left -= _text_growth(buffer, body, stop)
            if self.left < 0:
                raise self._exceeded()
            if cost.fields is not None:
                self._tensors -= cost.tensors
                if self._tensors < 0:
                    raise DecodeError(f"more than {MAX_TENSORS} tensors in one message")
                inner = parts.setdefault(key, {}) if cost.is_single or cost.is_entry else None
                self.charge(
                    cost.fields,
                    *(buffer, body, stop, depth + 1),
                    parts=inner if cost.is_single else None,
                    chains=inner if cost.is_entry else None,
                )
            elif cost.hash is not None and chains is not None:
                self._chain(chains, cost.hash(buffer[body:stop]))

    def _chain(self, chains: dict[int, int], code: int) -> None:
        length = chains[code % CHAINED] = chains.get(code % CHAINED, 0) + 1
        self._steps -= length
        if self._steps < 0:
            raise DecodeError("the keys of a map collide: finding each among the others would take too long")

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


@dataclass(frozen=True, slots=True)
class Growth:
    """What is known of all messages of a type."""

    steepest: int
    """The most memory that one byte on the wire can become."""
    has_integer_keys: bool

    def may_exceed(self, limit: int, size: int) -> bool:
        """Whether a message of `size` bytes must be walked through."""
        return size * self.steepest > limit or (self.has_integer_keys and size > LONG_CHAIN)


def growth(descriptor: Descriptor) -> Growth:
    seen: dict[int, Table] = {}
    _reach(table_of(descriptor), seen)
    costs = [_UNKNOWN, *(cost for table in seen.values() for cost in table.values())]
    most = max(cost.each // 2 + cost.per_byte + WIDEST * cost.is_text for cost in costs)
    return Growth(most, any(cost.hash is not None for cost in costs))


def _hash(kind: int) -> Callable[[bytes], int]:
    """How protobuf hashes an integer of that type: its upper half folded into the lower."""
    is_fixed = kind in _FIXED_64 or kind in _FIXED_32
    mask = (1 << (64 if kind in _FIXED_64 or kind in _LONG else 32)) - 1

    def code(content: bytes) -> int:
        value = int.from_bytes(content, "little") if is_fixed else _varint(content)
        value = (value >> 1 ^ -(value & 1) if kind in _ZIGZAG else value) & mask
        return (value ^ value >> 32) & 0xFFFFFFFF

    return code


def _varint(content: bytes) -> int:
    return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(content))


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
        return {tag | LENGTH: _message_cost(field, field.message_type)}
    wire_type, per_byte = 0, 32
    if kind == field.TYPE_ENUM:
        per_byte = 192  # a number that the .proto does not name becomes an object of its own
    elif kind in _FIXED_64:
        wire_type, per_byte = 1, 8
    elif kind in _FIXED_32:
        wire_type, per_byte = 5, 16
    alone = Cost(FIELD, per_byte if kind == field.TYPE_ENUM else 0)
    if _is_key(field) and kind != field.TYPE_BOOL:
        alone.hash = _hash(kind)
    return (
        {tag | wire_type: alone, tag | LENGTH: Cost(FIELD, per_byte)} if field.is_repeated else {tag | wire_type: alone}
    )


def _is_key(field: FieldDescriptor) -> bool:
    owner = field.containing_type
    return owner is not None and bool(owner.GetOptions().map_entry) and field.number == 1


def _message_cost(field: FieldDescriptor, descriptor: Descriptor) -> Cost:
    table, is_single = table_of(descriptor), not field.is_repeated
    if descriptor.full_name == "toolkit.v1.Tensor":
        return Cost(TENSOR, fields=table, tensors=1)
    if descriptor.GetOptions().map_entry:
        return Cost(ENTRY, fields=table, is_entry=True)
    theirs = FIELD + 24 + 24 * len(descriptor.fields)
    return Cost(theirs + NESTED + _size(class_of(descriptor.full_name)), fields=table, is_single=is_single)


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
