"""Whatever a message holds, and however it was written, the codec reads and writes what protobuf reads and writes.

The bytes are made at random from the message type: fields in any order, once or often, packed or not, with unknown fields
and known ones of another wire type between them. A message is read small, by protobuf's parser, and again behind a filler
that makes it large, so that it is sliced.
"""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2, struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reference import FILLER, check_agreement, read, theirs
from toolkit import codec
from toolkit.budget import SMALLEST, Budget, table_of
from toolkit.tensor import DType, Tensor
from toolkit.wire import LENGTH, varint

GOLDEN = Path(__file__).parent / "golden"
TYPES = [
    *(f"kinds.v1.kinds:{name}" for name in ("Scalars", "Optionals", "Repeats", "Expanded", "Maps", "Choices")),
    *(f"kinds.v1.kinds:{name}" for name in ("WellKnown", "Node", "Methods")),
    *("kinds.v1.second:Second", "kinds.v1.second:SecondNode", "kinds.v1.edition:Edition"),
    *("tensors.v1.tensors:Clip", "recursive.v1.recursive:Tree", "oneofs.v1.oneofs:Input", "maps.v1.maps:Maps"),
    *("enums.v1.enums:Levels", "imports.v1.imports:Everything", "nested.v1.nested:Outer"),
]
OWN = {"Tensor": Tensor, "Struct": struct_pb2.Struct, "Any": any_pb2.Any}
DEEPEST = 3
INTEGERS = st.sampled_from([0, 1, 2, 7, 127, 128, 300, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)
TEXTS = st.sampled_from([b"", b"a", b"text", "ß€😀".encode(), b"\0", b"x" * 200])
DOUBLES = st.sampled_from([0.0, -0.0, 1.5, -1e300, float("inf"), float("nan")])
FLOATS = st.sampled_from([0.0, -0.0, 1.5, -1e30, float("-inf"), float("nan")])
EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", autouse=True)
def _golden_is_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GOLDEN))
        yield


def message_class(name: str) -> Any:
    if name in OWN:
        return OWN[name]
    module, _, cls = name.partition(":")
    return getattr(importlib.import_module(f"golden.{module}_toolkit"), cls)


def delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | LENGTH) + varint(len(content)) + content


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> bytes:
    """The bytes of a message of that type."""
    if descriptor.full_name == "toolkit.v1.Tensor":
        return draw(tensors())
    pieces = []
    for _ in range(draw(st.integers(0, 10 if depth == 0 else 3))):
        field = draw(st.sampled_from(list(descriptor.fields))) if descriptor.fields else None
        if field is None or draw(st.integers(0, 7)) == 0:
            pieces.append(draw(unknown_fields(0 if field is None else field.number)))
        elif field.message_type is None or depth < DEEPEST:
            pieces += [draw(occurrences(field, depth))] * draw(st.sampled_from([1, 1, 1, 2]))
    return b"".join(draw(st.permutations(pieces)))


@st.composite
def occurrences(draw: st.DrawFn, field: FieldDescriptor, depth: int) -> bytes:
    """A field, in one of the ways that it may be written."""
    if field.message_type is not None:
        return delimited(field.number, draw(messages(field.message_type, depth + 1)))
    kind, items = draw(scalars(field))
    if field.is_repeated and kind != LENGTH and draw(st.booleans()):
        return delimited(
            field.number, b"".join([items, *(draw(scalars(field))[1] for _ in range(draw(st.integers(0, 3))))])
        )
    tag = varint(field.number << 3 | kind)
    if draw(st.integers(0, 15)) == 0 and len(tag) < 5:
        tag = tag[:-1] + bytes([tag[-1] | 0x80, 0])  # a byte longer than it has to be
    return tag + (varint(len(items)) + items if kind == LENGTH else items)


@st.composite
def scalars(draw: st.DrawFn, field: FieldDescriptor) -> tuple[int, bytes]:
    """The wire type and the bytes of a value that fits the field."""
    if field.type == field.TYPE_STRING:
        return LENGTH, draw(TEXTS)
    if field.type == field.TYPE_BYTES:
        return LENGTH, draw(TEXTS | st.binary(max_size=20))
    if field.type == field.TYPE_DOUBLE:
        return 1, struct.pack("<d", draw(DOUBLES))
    if field.type == field.TYPE_FLOAT:
        return 5, struct.pack("<f", draw(FLOATS))
    if field.type in (field.TYPE_FIXED64, field.TYPE_SFIXED64):
        return 1, struct.pack("<Q", draw(INTEGERS))
    if field.type in (field.TYPE_FIXED32, field.TYPE_SFIXED32):
        return 5, struct.pack("<I", draw(INTEGERS) & 0xFFFFFFFF)
    if field.enum_type is not None:
        named = st.sampled_from([value.number & (1 << 64) - 1 for value in field.enum_type.values])
        return 0, varint(draw(named | INTEGERS))
    return 0, varint(draw(INTEGERS))


@st.composite
def unknown_fields(draw: st.DrawFn, known: int) -> bytes:
    """A field that the type does not have, or has with another wire type: then nothing but protobuf knows what it is."""
    number = draw(st.sampled_from([known or 1, 77_777, 88_888, (1 << 29) - 1]))
    kind = draw(st.sampled_from([0, 1, 3, 5] if number == known else [0, 1, 2, 3, 5]))
    tag = varint(number << 3 | kind)
    if kind == 3:
        inner = draw(st.sampled_from([b"", b"\x08\x01", b"\x13\x14", b"\x0a\x01a\x11" + bytes(8)]))
        return tag + inner + varint(number << 3 | 4)
    if kind == LENGTH:
        return delimited(number, draw(st.binary(max_size=9)))
    return tag + (varint(draw(INTEGERS)) if kind == 0 else bytes(8 if kind == 1 else 4))


@st.composite
def tensors(draw: st.DrawFn) -> bytes:
    """A tensor, mostly valid, on either side of the size from which it is a view."""
    shape = draw(
        st.sampled_from([(), (0,), (3,), (2, 0, 5), (1,) * 32, (codec.VIEW_FROM - 1,), (codec.VIEW_FROM + 8,)])
    )
    dtype = draw(st.sampled_from([DType.UINT8, DType.BOOL, DType.INT8]))
    size = 1
    for axis in shape:
        size *= axis
    pieces = [b"\x08" + varint(dtype), delimited(14, b"pad"), delimited(15, b"\1" * size)]
    packed = draw(st.booleans())
    pieces.append(
        delimited(2, b"".join(map(varint, shape))) if packed else b"".join(b"\x10" + varint(n) for n in shape)
    )
    if draw(st.integers(0, 9)) == 0:
        pieces.append(draw(unknown_fields(15)))
    if draw(st.integers(0, 19)) == 0:
        pieces.pop(draw(st.integers(0, len(pieces) - 1)))
    return b"".join(draw(st.permutations(pieces)))


@pytest.mark.parametrize("name", [*TYPES, *OWN])
def test_bytes_mean_what_they_mean_to_protobuf(name: str) -> None:
    cls = message_class(name)
    descriptor = theirs(cls).DESCRIPTOR

    @EXAMPLES
    @given(messages(descriptor))
    def check(data: bytes) -> None:
        check_agreement(cls, data)
        check_agreement(cls, data + FILLER)
        check_agreement(cls, FILLER + data)
        if read(cls, data) is not None:
            Budget(SMALLEST).charge(table_of(descriptor), data, 0, len(data))

    check()


@pytest.mark.parametrize("name", TYPES)
def test_a_message_that_is_cut_off_or_changed_is_read_as_protobuf_reads_it(name: str) -> None:
    cls = message_class(name)

    @EXAMPLES
    @given(messages(theirs(cls).DESCRIPTOR), st.integers(0, 1 << 16), st.integers(0, 255), st.booleans())
    def check(data: bytes, place: int, byte: int, cut: bool) -> None:
        place %= len(data) + 1
        damaged = data[:place] if cut else data[:place] + bytes([byte]) + data[place + 1 :]
        check_agreement(cls, damaged)
        check_agreement(cls, FILLER + damaged)

    check()
