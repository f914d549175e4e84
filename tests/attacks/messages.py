"""Hostile messages, each built by a few lines that say what is wrong with it.

`ATTACKS` must be refused. `BURDENS` are legal, and must cost no more than the limit allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from toolkit.wire import LENGTH, varint

MILLION: Final = 1_000_000
MIB: Final = 1 << 20
LIMIT: Final = 16 * MIB
"""Of one message, in bytes: what the attacked replica is started with."""


@dataclass(frozen=True, slots=True)
class Attack:
    method: str
    """Of golden.kinds.v1.Attacked; its request says what the bytes are read as."""
    what: str
    build: Callable[[], bytes]

    def __str__(self) -> str:
        return f"{self.method}: {self.what}"


def key(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def number(field: int, value: int) -> bytes:
    return key(field, 0) + varint(value)


def content(field: int, data: bytes) -> bytes:
    """A string, a message, or packed numbers."""
    return key(field, LENGTH) + varint(len(data)) + data


def tensor(dtype: int, shape: list[int], data: bytes) -> bytes:
    dims = b"".join(varint(axis & (1 << 64) - 1) for axis in shape)
    return number(1, dtype) + content(2, dims) + content(15, data)


def nested(depth: int, innermost: bytes, *fields: int) -> bytes:
    """A message in a message in a message, through these fields in turn. It is written from its end."""
    heads: list[bytes] = []
    size = len(innermost)
    for level in reversed(range(depth)):
        heads.append(key(fields[level % len(fields)], LENGTH) + varint(size))
        size += len(heads[-1])
    return b"".join(reversed(heads)) + innermost


def groups(field: int, depth: int) -> bytes:
    return key(field, 3) * depth + key(field, 4) * depth


def entry(field: int, mapped: bytes, value: bytes) -> bytes:
    return content(field, content(1, mapped) + value)


def halves(depth: int, size: int) -> bytes:
    """Every message in two parts, an empty one and one that holds all the rest: whoever joins them copies `size` bytes at
    each level, and holds all of the copies.
    """
    data = content(2, tensor(6, [size], bytes(size)))
    for _ in range(depth):
        data = content(6, b"") + content(6, data)
    return data


def colliding(field: int, count: int, start: int = 0) -> bytes:
    """Entries of a map of integers of 64 bits, whose halves are equal: protobuf hashes all of them to 0."""
    return b"".join(content(field, number(1, n << 32 | n)) for n in range(start, start + count))


def parts_of(field: int) -> bytes:
    """A message in many parts, with some of such a map in each: together as bad as in one."""
    return b"".join(content(MAPS, colliding(field, 100, start)) for start in range(100, 25_000, 100))


UINT8, BOOL = 6, 1
MAPPED, MAPS = 2, 19
"""The field of Maps whose keys are of 64 bits, and the field of Node that holds Maps."""
NAME, TENSOR, TENSORS, BY_NAME, NEXT, NODES, NAMED, DENSE, TEXT, FIXED, GRADES = 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 16
"""Fields of Node, in golden/kinds/v1/kinds.proto; GRADES is the enum of Repeats."""

GOOD: Final = content(TENSOR, tensor(UINT8, [5000], bytes(5000)))
"""A Node that nobody minds."""

ATTACKS: Final = (
    # A tensor that is not what it says
    Attack("Tensors", "a shape whose product is 2^64", lambda: tensor(UINT8, [1 << 32, 1 << 32], b"")),
    Attack("Tensors", "a shape whose product is 0 in 64 bits", lambda: tensor(UINT8, [1 << 62, 4, 1], b"")),
    Attack("Tensors", "32 axes of 2^63 - 1", lambda: tensor(UINT8, [(1 << 63) - 1] * 32, b"x")),
    Attack("Tensors", "no element, and axes that overflow", lambda: tensor(UINT8, [0, 1 << 62, 1 << 62], b"")),
    Attack("Tensors", "a negative axis", lambda: tensor(UINT8, [-1], b"x")),
    Attack("Tensors", "two negative axes, whose product is right", lambda: tensor(UINT8, [-2, -2], b"four")),
    Attack("Tensors", "rank 33", lambda: tensor(UINT8, [1] * 33, b"x")),
    Attack("Tensors", "rank 10 000", lambda: tensor(UINT8, [1] * 10_000, b"x")),
    Attack("Tensors", "rank 10 000, one axis a field", lambda: number(1, UINT8) + number(2, 1) * 10_000),
    Attack("Tensors", "rank of four million", lambda: tensor(UINT8, [1] * 4 * MILLION, b"x")),
    Attack("Tensors", "a payload that is too short", lambda: tensor(UINT8, [1000, 1000], bytes(999_999))),
    Attack("Tensors", "a payload that is too long", lambda: tensor(UINT8, [1000, 1000], bytes(1_000_001))),
    Attack("Tensors", "a payload of no elements", lambda: tensor(UINT8, [0], b"x")),
    Attack("Tensors", "2 GiB in its shape, nothing in its payload", lambda: tensor(UINT8, [1 << 31], b"")),
    Attack("Tensors", "2 GiB in the payload's length", lambda: number(1, UINT8) + key(15, 2) + varint((1 << 31) - 1)),
    Attack("Tensors", "no dtype", lambda: content(2, b"\1") + content(15, b"x")),
    Attack("Tensors", "an unknown dtype", lambda: tensor(99, [1], b"x")),
    Attack("Tensors", "an unknown dtype, negative", lambda: tensor((1 << 64) - 1, [1], b"x")),
    Attack("Tensors", "booleans of 2", lambda: tensor(BOOL, [5000], b"\2" * 5000)),
    Attack("Nodes", "a tensor in two parts that do not fit", lambda: content(TENSOR, tensor(UINT8, [2], b"ab")) * 2),
    Attack("Nodes", "a bad tensor in a map", lambda: entry(BY_NAME, b"k", content(2, tensor(UINT8, [3], b"ab")))),
    Attack("Nodes", "a map's tensor that is missing", lambda: entry(BY_NAME, b"k", b"") + content(NAME, bytes(5000))),
    # Small on the wire, large in memory
    Attack("Nodes", "a million empty tensors", lambda: content(TENSORS, b"") * MILLION),
    Attack("Nodes", "a million tensors of no elements", lambda: content(TENSORS, tensor(UINT8, [0], b"")) * MILLION),
    Attack("Nodes", "a million empty messages that can hold tensors", lambda: content(NODES, b"") * MILLION),
    Attack("Nodes", "a million entries of a map of messages", lambda: content(NAMED, b"") * MILLION),
    Attack("Nodes", "a million messages five levels down", lambda: nested(5, content(NODES, b"") * MILLION, NEXT)),
    Attack("ManyNodes", "a million empty messages, in a stream", lambda: content(NODES, b"") * MILLION),
    Attack("Repeated", "a million empty messages", lambda: content(17, b"") * MILLION),
    Attack("Repeated", "a million empty strings", lambda: content(14, b"") * MILLION),
    Attack("Repeated", "four million packed numbers", lambda: content(4, b"\1" * 4 * MILLION)),
    Attack("Repeated", "four million packed booleans", lambda: content(13, b"\1" * 4 * MILLION)),
    Attack("Repeated", "a million packed doubles of their own", lambda: content(1, bytes(range(200)) * 40_000)),
    Attack(
        "Repeated", "a million numbers of an enum that it does not name", lambda: content(16, b"\x90\x4e" * MILLION)
    ),
    Attack("Unpacked", "a million numbers, a field each", lambda: number(102, 1) * MILLION),
    Attack("Unpacked", "a million numbers of an enum, a field each", lambda: number(120, 77) * MILLION),
    Attack("Mapped", "a map of a million equal keys", lambda: content(12, content(1, b"k")) * MILLION),
    Attack(
        "Mapped",
        "a map of 300 000 keys",
        lambda: b"".join(content(1, number(1, n)) for n in range(300_000)),
    ),
    Attack(
        "Structs", "a million empty values", lambda: entry(1, b"k", content(2, content(6, content(1, b"") * MILLION)))
    ),
    Attack("Scalar", "a million unknown fields", lambda: number(99, 1) * MILLION),
    Attack("Scalar", "a group of a million fields", lambda: key(99, 3) + number(1, 1) * MILLION + key(99, 4)),
    Attack("Scalar", "a million groups", lambda: groups(99, 1) * MILLION),
    Attack(
        "Scalar",
        "long text, and one character that makes all wide",
        lambda: content(14, b"a" * 4 * MIB + "😀".encode()),
    ),
    # Keys of a map that all hash alike: each is looked for among all that came before
    Attack("Mapped", "keys that collide", lambda: colliding(MAPPED, 200_000)),
    Attack("Mapped", "keys that collide, and fit", lambda: colliding(MAPPED, 25_000)),
    Attack(
        "Nodes", "keys that collide in parts of a map", lambda: content(MAPS, colliding(MAPPED, 100)) + parts_of(MAPPED)
    ),
    # The same over and over
    Attack("Scalar", "one field a million times", lambda: number(3, 1) * MILLION),
    Attack(
        "Chosen", "a oneof that changes its mind a million times", lambda: (number(3, 1) + content(14, b"")) * MILLION
    ),
    Attack("Nodes", "a oneof of tensors that does so", lambda: (content(TEXT, b"") + content(DENSE, b"")) * MILLION),
    # Deep
    Attack("Nodes", "10 000 messages in each other", lambda: nested(10_000, b"", NEXT)),
    Attack("Nodes", "101 messages in each other", lambda: nested(101, b"", NEXT)),
    Attack(
        "Nodes",
        "101 messages around a large tensor",
        lambda: nested(101, content(2, tensor(6, [5000], bytes(5000))), NEXT),
    ),
    Attack("Chosen", "10 000 messages without tensors", lambda: nested(10_000, b"", 19)),
    Attack("Structs", "10 000 lists in each other", lambda: entry(1, b"k", content(2, nested(10_000, b"", 6, 1)))),
    Attack("Scalar", "10 000 groups in each other", lambda: groups(99, 10_000)),
    Attack("Nodes", "10 000 groups in each other, sliced", lambda: content(NAME, bytes(5000)) + groups(99, 10_000)),
    Attack("Scalar", "a million groups in each other", lambda: groups(99, MILLION)),
    # Not protobuf
    *(
        Attack(method, f"{what}{after}", lambda data=data, filler=filler: filler + data)  # type: ignore[misc]
        for method, filler, after in (("Scalar", b"", ""), ("Nodes", content(99, bytes(5000)), ", sliced"))
        for what, data in (
            ("a tag that is cut off", b"\x80"),
            ("a varint that is cut off", key(3, 0) + b"\xff\xff"),
            ("a varint of eleven bytes", key(3, 0) + b"\x80" * 10 + b"\1"),
            ("a varint without an end", key(3, 0) + b"\xff" * 100_000),
            ("a tag of six bytes", b"\x98\x80\x80\x80\x80\x00" + b"\1"),
            ("a tag of 33 bits", b"\x98\x80\x80\x80\x10" + b"\1"),
            ("a length of six bytes", key(14, 2) + b"\x81\x80\x80\x80\x80\x00" + b"x"),
            ("a length of 2^64 - 1", key(14, 2) + varint((1 << 64) - 1) + b"x"),
            ("a length beyond the end", key(14, 2) + b"\5abc"),
            ("field number 0", b"\x00\x01"),
            ("wire type 6", key(3, 6) + b"\1"),
            ("wire type 7", key(3, 7) + b"\1"),
            ("the end of a group that has not begun", key(3, 4)),
            ("a group that does not end", key(99, 3) + number(1, 1)),
            ("a group that ends as another", key(99, 3) + key(98, 4)),
            ("half a double", key(1, 1) + b"1234"),
        )
    ),
    Attack("Scalar", "text that is no UTF-8", lambda: content(14, b"\xff\xfe")),
    Attack("Scalar", "text of half a character", lambda: content(14, "€".encode()[:2])),
    Attack("Scalar", "text of a surrogate", lambda: content(14, b"\xed\xa0\x80")),
    Attack("Scalar", "long text that is no UTF-8", lambda: content(14, b"a" * 4 * MIB + b"\xff")),
    Attack("Nodes", "text that is no UTF-8 beside a tensor", lambda: content(NAME, b"\xff") + content(99, bytes(5000))),
    Attack("Nodes", "a key that is no UTF-8", lambda: entry(BY_NAME, b"\xff", b"")),
    Attack("SecondNodes", "text that is no UTF-8, which proto2 does not check", lambda: content(5, b"\xff")),
    Attack("SecondNodes", "a key that is no UTF-8, in proto2", lambda: content(11, entry(12, b"\xff", b""))),
    # Too large
    Attack("Scalar", "a message over the limit", lambda: content(14, bytes(LIMIT))),
)

BURDENS: Final = (
    Attack("Nodes", "90 messages in two halves each", lambda: halves(90, 3 * MIB)),
    Attack(
        "Nodes", "100 messages in each other", lambda: nested(99, content(TENSOR, tensor(6, [5000], bytes(5000))), NEXT)
    ),
    Attack("Scalar", "a hundred thousand times one field", lambda: number(3, 1) * 100_000),
    Attack("Scalar", "four million bytes that nobody knows", lambda: content(99, bytes(4 * MILLION))),
    Attack("Nodes", "as many tensors as may be", lambda: content(TENSORS, tensor(UINT8, [0], b"")) * 10_000),
    Attack("Nodes", "as many messages as may be", lambda: content(NODES, b"") * 9_000),
    Attack("Repeated", "as many messages as may be", lambda: content(17, b"") * 15_000),
    Attack("Repeated", "as many numbers as may be", lambda: content(4, b"\xff\1" * 250_000)),
    Attack("Repeated", "as many strings as may be", lambda: content(14, b"12345678") * 95_000),
    Attack("Repeated", "as many unknown numbers of an enum as may be", lambda: content(16, b"\x90\x4e" * 43_000)),
    Attack(
        "Mapped",
        "as many entries as may be",
        lambda: b"".join(content(1, number(1, n) + number(2, n)) for n in range(35_000)),
    ),
    Attack("Scalar", "as many unknown fields as may be", lambda: number(99, 1) * 80_000),
    Attack("Scalar", "as wide a text as may be", lambda: content(14, b"a" * 2 * MIB + "😀".encode())),
)
