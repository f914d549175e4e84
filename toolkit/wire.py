"""The protobuf wire format, as far as finding where fields begin and end: what lets tensors be sliced where they lie.

Source: https://protobuf.dev/programming-guides/encoding/. What is refused is what protobuf's own parser refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LENGTH: Final = 2
"""The wire type of strings, bytes, messages and packed fields."""
GROUP: Final = 3
"""That of the start of a group, a kind of message that ends with a tag of its own."""
MAX_DEPTH: Final = 100
"""Nesting of messages and groups, as in protobuf's own parsers."""
MAX_GROUP: Final = 1 << 20
"""Bytes of a group, the one thing that says its length nowhere. No .proto of ours has one."""


class DecodeError(ValueError):
    """The bytes are not a valid message of that type."""


_ONE_BYTE: Final = tuple(bytes([value]) for value in range(0x80))


def varint(value: int) -> bytes:
    if value < 0x80:
        return _ONE_BYTE[value]
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def scan(buffer: bytes, start: int, end: int, depth: int = 0) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields in `buffer[start:end]`, each as (number, wire type, start of its tag, start of its content, end).

    `depth` is how deep this message is nested already. Raises DecodeError where they do not fit.
    """
    position = start
    while position < end:
        key, body = _read_tag(buffer, position, end)
        wire_type = key & 7
        if wire_type == LENGTH and body < end and buffer[body] < 0x80:  # the usual cases, without a call
            stop = body + 1 + buffer[body]
            body += 1
        elif wire_type == 0 and body < end and buffer[body] < 0x80:
            stop = body + 1
        else:
            body, stop = _find_content(buffer, body, end, key, depth)
        if stop > end:
            raise DecodeError(f"field {key >> 3} at byte {body} runs past the end of its message")
        yield key >> 3, wire_type, position, body, stop
        position = stop


def _read_tag(buffer: bytes, position: int, end: int) -> tuple[int, int]:
    """Number and wire type as they are on the wire, in one, and where they end."""
    key = buffer[position]
    body = position + 1
    if key >= 0x80:
        key, body = _read_varint(buffer, position, end, 5)
    if not 8 <= key < 1 << 32:
        raise DecodeError(f"field number {key >> 3} at byte {position}")
    return key, body


def _find_content(buffer: bytes, body: int, end: int, key: int, depth: int) -> tuple[int, int]:
    """Where the content begins, and where the field ends, whose tag `key` ends at `body`."""
    wire_type = key & 7
    if wire_type == LENGTH:
        length, body = _read_varint(buffer, body, end, 5)
        return body, body + length
    if wire_type == 0:
        return body, _read_varint(buffer, body, end, 10)[1]
    if wire_type == 1:
        return body, body + 8
    if wire_type == 5:
        return body, body + 4
    if wire_type == GROUP:
        return body, _end_of_group(buffer, body, min(end, body + MAX_GROUP), key >> 3, depth + 1)
    raise DecodeError(f"wire type {wire_type} at byte {body}")


def _end_of_group(buffer: bytes, position: int, end: int, number: int, depth: int) -> int:
    if depth > MAX_DEPTH:
        raise DecodeError(f"wire type 3 at byte {position}: groups nested deeper than {MAX_DEPTH}")
    while True:
        key, body = _read_varint(buffer, position, end, 5)
        if key & 7 == 4:
            if key >> 3 != number:
                raise DecodeError(f"group {number} is closed as {key >> 3}")
            return body
        _, position = _find_content(buffer, body, end, key, depth)


def _read_varint(buffer: bytes, position: int, end: int, most: int) -> tuple[int, int]:
    """A number of at most so many bytes, and where it ends."""
    value = 0
    for shift in range(0, 7 * most, 7):
        if position >= end:
            raise DecodeError("the message is cut off")
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError(f"varint longer than {'five' if most == 5 else 'ten'} bytes at byte {position}")
