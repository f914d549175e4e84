"""Finding fields in protobuf bytes: what is found, and what is refused."""

from __future__ import annotations

import pytest
from google.protobuf import wrappers_pb2

from toolkit.wire import LENGTH, MAX_DEPTH, DecodeError, scan, varint

SIZES = [0, 1, 0x7F, 0x80, 0x3FFF, 0x4000, (1 << 28) - 1, 1 << 28, (1 << 63) - 1, (1 << 64) - 1]


def fields(data: bytes) -> list[tuple[int, int, bytes]]:
    return [(number, kind, data[body:stop]) for number, kind, _, body, stop in scan(data, 0, len(data))]


@pytest.mark.parametrize("value", SIZES)
def test_a_varint_is_that_of_protobuf(value: int) -> None:
    assert b"\x08" + varint(value) == (wrappers_pb2.UInt64Value(value=value).SerializeToString() or b"\x08\x00")


@pytest.mark.parametrize("value", SIZES)
def test_a_varint_field_ends_where_it_ends(value: int) -> None:
    assert fields(b"\x08" + varint(value) + b"\x10\x01") == [(1, 0, varint(value)), (2, 0, b"\x01")]


def test_fields_of_every_wire_type_are_found_in_order() -> None:
    data = b"\x08\x05" + b"\x11" + b"8" * 8 + b"\x1a\x03abc" + b"\x25" + b"4" * 4 + b"\x2b\x08\x01\x2c"
    assert fields(data) == [
        (1, 0, b"\x05"),
        (2, 1, b"8" * 8),
        (3, LENGTH, b"abc"),
        (4, 5, b"4" * 4),
        (5, 3, b"\x08\x01\x2c"),
    ]


def test_tags_are_where_the_fields_start() -> None:
    assert [tag for _, _, tag, _, _ in scan(b"xx\x08\x01\x12\x00yy", 2, 6)] == [2, 4]


def test_nothing_holds_no_field() -> None:
    assert fields(b"") == []


@pytest.mark.parametrize("number", [1, 15, 16, 2047, 2048, (1 << 29) - 1])
def test_every_field_number_is_read(number: int) -> None:
    assert fields(varint(number << 3) + b"\x01") == [(number, 0, b"\x01")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x01", "field number 0"),
        (varint(1 << 29 << 3) + b"\x01", f"field number {1 << 29}"),
        (b"\x08", "cut off"),
        (b"\x08\x80", "cut off"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "longer than ten bytes"),
        (b"\x09" + b"8" * 7, "runs past the end"),
        (b"\x0d" + b"4" * 3, "runs past the end"),
        (b"\x0a\x04abc", "runs past the end"),
        (b"\x0a" + varint((1 << 31) - 1), "runs past the end"),
        (b"\x0a" + varint((1 << 64) - 1), "longer than five bytes"),
        (b"\x0c", "wire type 4"),
        (b"\x0e", "wire type 6"),
        (b"\x0f", "wire type 7"),
        (b"\x0b", "cut off"),
        (b"\x0b\x14", "group 1 is closed as 2"),
        (b"\x0b" * (MAX_DEPTH + 1) + b"\x0c" * (MAX_DEPTH + 1), "wire type 3"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        fields(data)


def test_groups_are_passed_over_down_to_the_same_depth_as_in_protobuf() -> None:
    data = b"\x0b" * MAX_DEPTH + b"\x0c" * MAX_DEPTH
    assert [(number, kind) for number, kind, _ in fields(data)] == [(1, 3)]


def test_a_field_does_not_reach_beyond_its_own_message() -> None:
    with pytest.raises(DecodeError, match="runs past the end"):
        list(scan(b"\x0a\x03abc", 0, 4))
