"""The protobuf wire format, as far as finding where fields begin and end: what lets tensors be sliced where they lie.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LENGTH: Final = 2
"""The wire type of strings, bytes, messages and packed fields."""
MAX_DEPTH: Final = 100
"""Nesting of messages and groups, as in protobuf's own parsers."""


class DecodeError(ValueError):
    """The bytes are not a valid message of that type."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def scan(buffer: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields in `buffer[start:end]`, each as (number, wire type, start of its tag, start of its content, end).

    Source: https://protobuf.dev/programming-guides/encoding/. Raises DecodeError where they do not fit.
    """
    position = start
    while position < end:
        key, body = _readvarint(buffer, position, end)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise DecodeError(f"field number {number} at byte {position}")
        content, stop = _content(buffer, body, end, wire_type, number)
        yield number, wire_type, position, content, stop
        position = stop


def _content(buffer: bytes, body: int, end: int, wire_type: int, number: int, depth: int = 0) -> tuple[int, int]:
    if wire_type == LENGTH:
        length, body = _readvarint(buffer, body, end)
        stop = body + length
    elif wire_type == 0:
        _, stop = _readvarint(buffer, body, end)
    elif wire_type == 1:
        stop = body + 8
    elif wire_type == 5:
        stop = body + 4
    elif wire_type == 3 and depth < MAX_DEPTH:
        stop = _end_of_group(buffer, body, end, number, depth + 1)
    else:
        raise DecodeError(f"wire type {wire_type} at byte {body}")
    if stop > end:
        raise DecodeError(f"field {number} at byte {body} runs past the end of its message")
    return body, stop


def _end_of_group(buffer: bytes, position: int, end: int, number: int, depth: int) -> int:
    while True:
        key, body = _readvarint(buffer, position, end)
        if key & 7 == 4:
            if key >> 3 != number:
                raise DecodeError(f"group {number} is closed as {key >> 3}")
            return body
        _, position = _content(buffer, body, end, key & 7, key >> 3, depth)


def _readvarint(buffer: bytes, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise DecodeError("the message is cut off")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise DecodeError(f"varint longer than ten bytes at byte {position}")
