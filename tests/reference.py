"""What bytes mean according to protobuf's own implementation: the measure for the codec, in tests and while fuzzing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from toolkit import codec
from toolkit.message import class_of
from toolkit.tensor import DType, Tensor
from toolkit.wire import GROUP, LENGTH, varint

FILLER = varint(99_999 << 3 | LENGTH) + varint(codec.VIEW_FROM) + bytes(codec.VIEW_FROM)
"""An unknown field that makes a message large, so that it is read by slicing."""
_ELEMENTS = b"\x08\x06\x12\x02" + varint(codec.VIEW_FROM) + b"\x7a" + varint(codec.VIEW_FROM) + bytes(codec.VIEW_FROM)
LAST = b"\x0a" + varint(len(_ELEMENTS)) + _ELEMENTS
"""The pixels of an Image, behind whatever else it has."""


def theirs(cls: Any) -> Any:
    """protobuf's own class for a generated one, a Tensor, or one of its own."""
    if issubclass(cls, Message):
        return cls
    name = "toolkit.v1.Tensor" if cls is Tensor else cls.__proto__
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(name))


def check_agreement(cls: Any, data: bytes) -> None:
    """The codec refuses the bytes exactly where protobuf does, reads the same from them, and writes that back."""
    expected = read(cls, data)
    try:
        found = codec.decode(cls, data)
    except codec.DecodeError:
        assert expected is None
        return
    assert expected is not None
    check_same(found, expected)
    try:
        again = codec.encode(found)
    except codec.EncodeError:
        assert _is_too_deep(expected)
        return
    assert canonical(theirs(cls).FromString(again)) == canonical(expected)
    assert codec.decode(cls, again) == found or "nan" in repr(found)  # which equals nothing
    if dataclasses.is_dataclass(found):
        fresh = cls(**{field.name: getattr(found, field.name) for field in dataclasses.fields(found)})
        check_same(fresh, theirs(cls).FromString(codec.encode(fresh)))


def _is_too_deep(pb: Any) -> bool:
    """Whether protobuf writes what it refuses to read: an entry of a map at the limit gets the value that it lacked."""
    try:
        type(pb).FromString(type(pb).SerializeToString(pb))
    except DecodeError:
        return True
    return False


def read(cls: Any, data: bytes) -> Any:
    """protobuf's message for `data`; None for what the codec must refuse: what protobuf refuses, a tensor that breaks the
    rules of tensor.proto, and text that is no UTF-8.
    """
    try:
        pb = theirs(cls).FromString(data)
        return pb if all(map(_is_allowed, _walk(pb))) else None
    except (DecodeError, UnicodeDecodeError):
        return None


def canonical(pb: Any) -> Any:
    """Equal for equal messages. What a tensor is padded with, and what it holds that is unknown, counts for nothing."""
    is_tensor = type(pb).DESCRIPTOR.full_name == "toolkit.v1.Tensor"
    known = {
        field.number: _canonical_field(field, value)
        for field, value in type(pb).ListFields(pb)
        if not (is_tensor and field.name == "padding")
    }
    return known, () if is_tensor else _canonical_unknown(UnknownFieldSet(pb))


def _canonical_field(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        item = field.message_type.fields_by_name["value"]
        return {key: _canonical_item(item, value[key]) for key in value}
    return [_canonical_item(field, item) for item in (value if field.is_repeated else [value])]


def _canonical_item(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return canonical(value)
    return repr(value) if isinstance(value, float) else value  # NaN is NaN, and 0.0 is not -0.0


def _canonical_unknown(fields: Any) -> tuple[Any, ...]:
    """Their order matters among those of one number and kind only."""
    return tuple(
        (each.field_number, each.wire_type, _canonical_unknown(each.data) if each.wire_type == GROUP else each.data)
        for each in sorted(fields, key=lambda each: (each.field_number, each.wire_type))
    )


def check_same(ours: Any, pb: Any) -> None:
    """Field by field, with types and presence."""
    if isinstance(ours, Tensor):
        assert (ours.dtype, ours.shape, bytes(ours.data)) == (pb.dtype, tuple(pb.shape), pb.data)
        assert type(ours.dtype) is DType
    elif isinstance(ours, Message):
        assert type(ours) is type(pb)
        assert canonical(ours) == canonical(pb)
    else:
        cls = class_of(type(pb).DESCRIPTOR.full_name)
        assert cls is not None
        assert type(ours) is cls
        for field, declared in zip(dataclasses.fields(ours), type(pb).DESCRIPTOR.fields, strict=True):
            _check_field(getattr(ours, field.name), pb, declared)


def _check_field(ours: Any, pb: Any, field: FieldDescriptor) -> None:
    value = getattr(pb, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        assert type(ours) is dict
        assert set(ours) == set(value)
        for key in value:
            assert type(key) is type(next(each for each in ours if each == key))
            _check_item(ours[key], value[key], field.message_type.fields_by_name["value"])
    elif field.is_repeated:
        assert type(ours) is list
        for one, other in zip(ours, value, strict=True):
            _check_item(one, other, field)
    elif field.has_presence and not type(pb).HasField(pb, field.name):
        assert ours is None
    else:
        _check_item(ours, value, field)


def _check_item(ours: Any, value: Any, field: FieldDescriptor) -> None:
    if field.message_type is not None:
        check_same(ours, value)
    elif field.enum_type is not None:
        assert type(ours) is (class_of(field.enum_type.full_name) or int)
        assert int(ours) == value
    else:
        assert type(ours) is type(value)
        assert ours == value or (math.isnan(ours) and math.isnan(value))


def _walk(pb: Any) -> Iterator[Any]:
    """The message, those in it, and all text."""
    yield pb
    for field, value in type(pb).ListFields(pb):
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            items, item_field = [value[key] for key in value], field.message_type.fields_by_name["value"]
        else:
            items, item_field = (list(value) if field.is_repeated else [value]), field
        for item in items:
            if item_field.message_type is not None:
                yield from _walk(item)
            elif item_field.type == field.TYPE_STRING:
                yield item


def _is_allowed(each: Any) -> bool:
    if isinstance(each, bytes):
        return False  # protobuf hands out text that is no UTF-8 as bytes
    if isinstance(each, str) or type(each).DESCRIPTOR.full_name != "toolkit.v1.Tensor":
        return True
    try:
        Tensor(DType(each.dtype), tuple(each.shape), each.data)
    except ValueError:
        return False
    return True
