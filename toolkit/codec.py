"""Messages to bytes and back. The bytes are ordinary protobuf.

Two ways meet here. The scalar parts of a message go through protobuf's own C implementation. Tensors never do, because
it would copy their elements at every step: on the way out they are gathered by reference into one join, on the way in
they are slices of the message that arrived. A message type is split once, on first use, into a `_Plan`: the fields that
can hold no tensor ("plain") and those that can ("gathered").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar, cast

import numpy as np
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from toolkit.message import Message, class_of
from toolkit.tensor import ALIGNMENT, DType, Tensor

M = TypeVar("M")

VIEW_FROM: Final = 4096
"""Payloads below this many bytes are copied out: cheaper than padding, and a small view would pin a large message."""
MAX_DEPTH: Final = 100
"""Nesting of messages, as in protobuf's own parsers."""
MAX_TENSORS: Final = 16384
"""Tensors in one message."""


class EncodeError(ValueError):
    """The message cannot be encoded: a field holds the wrong type, or two members of a oneof are set."""


class DecodeError(ValueError):
    """The bytes are not a valid message of that type."""


def encode(message: Any) -> bytes:
    """The protobuf encoding of a generated message, a `Tensor`, or one of protobuf's own messages.

    Raises EncodeError naming the field at fault.
    """
    if isinstance(message, ProtobufMessage):
        return message.SerializeToString()
    plan = _plan(type(message))
    if isinstance(plan, _MessagePlan) and not plan.gathered:
        return cast("bytes", plan.to_pb(message).SerializeToString())
    parts: list[bytes | memoryview] = []
    plan.gather(message, parts, 0)
    return b"".join(parts)


def decode(cls: type[M], data: bytes) -> M:
    """The message of type `cls` in `data`. Its large tensors are views of `data`. Raises DecodeError."""
    try:
        if issubclass(cls, ProtobufMessage):
            return cast("M", cls.FromString(data))
        return cast("M", _plan(cls).decode(data))
    except ProtobufDecodeError as error:
        raise DecodeError(str(error)) from None


class _Field:
    """A field of a message: how its value goes to and comes from protobuf's own message."""

    __slots__ = ("attribute", "name", "oneof", "read", "same", "write")

    def __init__(self, field: FieldDescriptor, attribute: str) -> None:
        self.name = field.name
        self.attribute = attribute
        oneof = field.containing_oneof
        self.oneof = oneof.name if oneof is not None and len(oneof.fields) > 1 else None
        to_plain, from_plain = _converters(field)
        self.write: Callable[[Any], Any] = _writer(field, to_plain)
        self.read: Callable[[Any], Any] = _reader(field, from_plain)
        self.same = not (field.is_repeated or field.has_presence or from_plain)
        """The value is the same on both sides, so that C code may move it."""


class _MessagePlan:
    """How one message type moves to and from bytes."""

    def __init__(self, descriptor: Descriptor, cls: type[Any], renamed: dict[str, str]) -> None:
        fields = [(f, _Field(f, renamed.get(f.name, f.name))) for f in descriptor.fields]
        self.cls = cls
        self.pb: Any = message_factory.GetMessageClass(descriptor)
        self.gathered = {f.number: _Gathered(f, plan) for f, plan in fields if _is_gathered(f)}
        plain = [plan for f, plan in fields if f.number not in self.gathered]
        same = [f for f in plain if f.same]
        self._names = tuple(f.name for f in same)
        self._attributes = tuple(f.attribute for f in same)
        self._get = _tuple_getter(self._attributes)
        self._get_pb = _tuple_getter(self._names)
        self._others = tuple(f for f in plain if not f.same)
        self._fields = tuple(plan for _, plan in fields)
        self._gathered_fields = tuple(plan for f, plan in fields if f.number in self.gathered)
        self._oneofs = _exclusive_attributes(self._fields)
        self._rivals = _rivals(descriptor, self.gathered)

    def to_pb(self, message: Any) -> Any:
        """protobuf's own message with the plain fields, and with what this side does not know."""
        values = dict(zip(self._names, self._get(message), strict=True))
        for field in self._others:
            value = getattr(message, field.attribute)
            if value is not None:
                values[field.name] = self._written(field, value)
        self._check_oneofs(message)
        try:
            pb = self.pb(**values)
        except (TypeError, ValueError) as error:
            raise EncodeError(self._culprit(values) or f"{self.cls.__name__}: {error}") from None
        unknown = getattr(message, "_unknown", b"")
        if unknown:
            pb.MergeFromString(unknown)
        return pb

    def gather(self, value: Any, parts: list[bytes | memoryview], offset: int | None) -> int:
        """Append the encoding to `parts`, and return its length. `offset` is where it starts in the outermost message,
        so that tensors can be aligned; None leaves them where they fall.
        """
        head: bytes = self.to_pb(value).SerializeToString()
        parts.append(head)
        size = len(head)
        for field in self.gathered.values():
            found = getattr(value, field.attribute)
            for item in () if found is None else field.items(found):
                size += field.gather(item, parts, None if offset is None else offset + size)
        return size

    def weight(self, value: Any) -> int:
        """About how many bytes its tensors take."""
        found = ((f, getattr(value, f.attribute)) for f in self.gathered.values())
        return sum(f.plan.weight(item) for f, items in found if items is not None for item in f.items(items))

    def decode(self, data: bytes) -> Any:
        if not self.gathered or len(data) < VIEW_FROM:
            return self.from_pb(self.pb.FromString(data))
        return self.slice(data, 0, len(data), _Budget())

    def from_pb(self, pb: Any) -> Any:
        values = self._plain_values(pb)
        for field in self._gathered_fields:
            values[field.attribute] = field.read(pb)
        return self._with_unknown(self.cls(**values), pb)

    def slice(self, buffer: bytes, start: int, end: int, budget: _Budget, depth: int = 0) -> Any:
        """The message in `buffer[start:end]`; tensors become views of `buffer`. Its semantics are those of any
        protobuf parser, occurrences in any order included.
        """
        if depth > MAX_DEPTH:
            raise DecodeError(f"messages nested deeper than {MAX_DEPTH}")
        plain: list[tuple[int, int, int]] = []
        found: dict[int, list[tuple[int, int]]] = {}
        for number, wire_type, tag, body, stop in _scan(buffer, start, end):
            for rival in self._rivals.get(number, ()):
                found.pop(rival, None)
                plain = [run for run in plain if run[0] != rival]
            if wire_type == _LENGTH and number in self.gathered:
                found.setdefault(number, []).append((body, stop))
            elif plain and plain[-1][2] == tag and number not in self._rivals and plain[-1][0] not in self._rivals:
                plain[-1] = (0, plain[-1][1], stop)
            else:
                plain.append((number if number in self._rivals else 0, tag, stop))
        pb = self.pb.FromString(b"".join(buffer[a:b] for _, a, b in plain))
        values = self._plain_values(pb)
        for number, field in self.gathered.items():
            values[field.attribute] = field.slice(buffer, found.get(number, ()), budget, depth + 1)
        return self._with_unknown(self.cls(**values), pb)

    def _plain_values(self, pb: Any) -> dict[str, Any]:
        values = dict(zip(self._attributes, self._get_pb(pb), strict=True))
        for field in self._others:
            values[field.attribute] = field.read(pb)
        return values

    def _with_unknown(self, message: Any, pb: Any) -> Any:
        if len(UnknownFieldSet(pb)):
            rest = self.pb()
            rest.CopyFrom(pb)
            for field, _ in pb.ListFields():
                rest.ClearField(field.name)
            message._unknown = rest.SerializeToString()
        return message

    def _written(self, field: _Field, value: Any) -> Any:
        try:
            return field.write(value)
        except EncodeError as error:
            raise EncodeError(f"{self.cls.__name__}.{field.attribute}: {error}") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise EncodeError(f"{self.cls.__name__}.{field.attribute}: {error}") from None

    def _check_oneofs(self, message: Any) -> None:
        for name, attributes in self._oneofs:
            both = [a for a in attributes if getattr(message, a) is not None]
            if len(both) > 1:
                raise EncodeError(
                    f"{self.cls.__name__}: {' and '.join(both)} are both set, of oneof {name} only one may be"
                )

    def _culprit(self, values: dict[str, Any]) -> str | None:
        for name, value in values.items():
            try:
                self.pb(**{name: value})
            except (TypeError, ValueError) as error:
                return f"{self.cls.__name__}.{name}: {type(value).__name__} {value!r:.80} does not fit: {error}"
        return None


class _TensorPlan:
    """How `Tensor` moves to and from bytes: the one type whose payload never passes through protobuf."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.pb: Any = message_factory.GetMessageClass(descriptor)

    def gather(self, value: Tensor, parts: list[bytes | memoryview], offset: int | None) -> int:
        dims = b"".join(map(_varint, value.shape))
        head = b"\x08" + _varint(value.dtype) + (b"\x12" + _varint(len(dims)) + dims if dims else b"")
        payload = value.data
        if not payload.nbytes:
            parts.append(head)
            return len(head)
        length = b"\x7a" + _varint(payload.nbytes)
        if offset is not None and payload.nbytes >= VIEW_FROM:
            head += _padding(-(offset + len(head) + len(length)) % ALIGNMENT)
        parts.append(head + length)
        parts.append(payload)
        return len(head) + len(length) + payload.nbytes

    def weight(self, value: Tensor) -> int:
        return value.nbytes

    def from_pb(self, pb: Any) -> Tensor:
        return _checked(pb.dtype, pb.shape, pb.data)

    def decode(self, data: bytes) -> Tensor:
        return self.slice(data, 0, len(data), _Budget())

    def slice(self, buffer: bytes, start: int, end: int, budget: _Budget, depth: int = 0) -> Tensor:
        budget.spend()
        header: list[bytes] = []
        payload = (start, start)
        for number, wire_type, tag, body, stop in _scan(buffer, start, end):
            if number == _DATA and wire_type == _LENGTH:
                payload = (body, stop)
            elif number != _PADDING:
                header.append(buffer[tag:stop])
        pb = self.pb.FromString(b"".join(header))
        return _checked(pb.dtype, pb.shape, _view(buffer, *payload))


class _Plan(Protocol):
    """How values of one type move to and from bytes."""

    def gather(self, value: Any, parts: list[bytes | memoryview], offset: int | None) -> int: ...
    def weight(self, value: Any) -> int: ...
    def decode(self, data: bytes) -> Any: ...
    def from_pb(self, pb: Any) -> Any: ...
    def slice(self, buffer: bytes, start: int, end: int, budget: _Budget, depth: int = 0) -> Any: ...


_DATA: Final = 15
_PADDING: Final = 14
_LENGTH: Final = 2


class _Gathered:
    """A field through which tensors can be reached."""

    def __init__(self, field: FieldDescriptor, plain: _Field) -> None:
        self.attribute = plain.attribute
        self._tag = _varint(field.number << 3 | _LENGTH)
        self._descriptor = _message_type(field)
        self._is_map = self._descriptor.GetOptions().map_entry
        self._is_repeated = field.is_repeated

    @property
    def plan(self) -> _Plan:
        return _entry_plan(self._descriptor) if self._is_map else _plan_of(self._descriptor)

    def items(self, value: Any) -> Iterable[Any]:
        if self._is_map:
            return (_Entry(key, item) for key, item in value.items())
        return cast("list[Any]", value) if self._is_repeated else (value,)

    def gather(self, item: Any, parts: list[bytes | memoryview], offset: int | None) -> int:
        """Tag, length and content. The length's own size shifts the content, so it is guessed from the tensors first;
        where padding pushes the length over to another size and back, the content goes unaligned.
        """
        plan = self.plan
        size = len(_varint(plan.weight(item)))
        for start in (offset, offset, None):
            body: list[bytes | memoryview] = []
            length = _varint(plan.gather(item, body, None if start is None else start + len(self._tag) + size))
            if start is None or len(length) == size:
                break
            size = len(length)
        parts.append(self._tag + length)
        parts.extend(body)
        return len(self._tag) + len(length) + sum(len(part) for part in body)

    def slice(self, buffer: bytes, found: Iterable[tuple[int, int]], budget: _Budget, depth: int) -> Any:
        plan = self.plan
        if self._is_repeated:
            items = [plan.slice(buffer, start, end, budget, depth) for start, end in found]
            return {entry.key: entry.value for entry in items} if self._is_map else items
        occurrences = list(found)
        if len(occurrences) == 1:
            return plan.slice(buffer, *occurrences[0], budget, depth)
        if not occurrences:
            return None
        merged = b"".join(buffer[start:end] for start, end in occurrences)  # what protobuf defines a repeat to mean
        return plan.slice(merged, 0, len(merged), budget, depth)


@dataclass(slots=True)
class _Entry:
    """An entry of a map, which on the wire is a repeated message of key and value."""

    key: Any
    value: Any
    _unknown: bytes = b""


class _Budget:
    """How many tensors one message may still hold."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_TENSORS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise DecodeError(f"more than {MAX_TENSORS} tensors in one message")


_plans: dict[Any, _Plan] = {}


def _plan(cls: type[Any]) -> _Plan:
    plan = _plans.get(cls)
    if plan is None:
        plan = _plans[cls] = _make_plan(cls)
    return plan


def _make_plan(cls: type[Any]) -> _Plan:
    pool = descriptor_pool.Default()
    if cls is Tensor:
        return _TensorPlan(pool.FindMessageTypeByName("toolkit.v1.Tensor"))
    name = getattr(cls, "__proto__", None)
    if name is None or not issubclass(cls, Message):
        raise EncodeError(f"{cls.__name__} is not a message; messages are the classes in *_toolkit.py modules")
    return _MessagePlan(pool.FindMessageTypeByName(name), cls, getattr(cls, "__renamed__"))  # noqa: B009 - set by a decorator


def _plan_of(descriptor: Descriptor) -> _Plan:
    return _plan(_class_of(descriptor))


def _entry_plan(descriptor: Descriptor) -> _Plan:
    plan = _plans.get(descriptor.full_name)
    if plan is None:
        plan = _plans[descriptor.full_name] = _MessagePlan(descriptor, _Entry, {})
    return plan


def _class_of(descriptor: Descriptor) -> type[Any]:
    """The Python class of a message type: ours, or protobuf's own for google.protobuf.*."""
    if descriptor.full_name == "toolkit.v1.Tensor":
        return Tensor
    cls = class_of(descriptor.full_name)
    return message_factory.GetMessageClass(descriptor) if cls is None else cls


def _message_type(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_gathered(field: FieldDescriptor) -> bool:
    return field.message_type is not None and _reaches_tensor(field.message_type, set())


def _reaches_tensor(descriptor: Descriptor, seen: set[str]) -> bool:
    if descriptor.full_name == "toolkit.v1.Tensor":
        return True
    if descriptor.full_name in seen or (
        class_of(descriptor.full_name) is None and not descriptor.GetOptions().map_entry
    ):
        return False
    seen.add(descriptor.full_name)
    return any(_reaches_tensor(f.message_type, seen) for f in descriptor.fields if f.message_type is not None)


def _converters(field: FieldDescriptor) -> tuple[Callable[[Any], Any] | None, Callable[[Any], Any] | None]:
    """How one item of the field goes to and comes from protobuf; None where it stays the same."""
    if _is_map(field):
        return _converters(_message_type(field).fields_by_name["value"])
    if field.enum_type is not None:
        enum = class_of(field.enum_type.full_name)
        return None, enum
    if field.message_type is None or issubclass(_class_of(field.message_type), ProtobufMessage):
        return None, None
    cls = _class_of(field.message_type)
    return lambda value: _nested(cls, value), lambda pb: _plan(cls).from_pb(pb)


def _nested(cls: type[Any], value: Any) -> Any:
    plan = _plan(cls)
    if type(value) is not cls:
        raise EncodeError(f"expected {cls.__name__}, got {type(value).__name__}")
    assert isinstance(plan, _MessagePlan)  # a tensor's field is gathered, never plain
    return plan.to_pb(value)


def _writer(field: FieldDescriptor, convert: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    if convert is None:
        return lambda value: value
    if _is_map(field):
        return lambda value: {key: convert(item) for key, item in value.items()}
    if field.is_repeated:
        return lambda value: [convert(item) for item in value]
    return convert


def _reader(field: FieldDescriptor, convert: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    name = field.name
    if _is_map(field):
        return lambda pb: {k: convert(v) if convert else v for k, v in getattr(pb, name).items()}
    if field.is_repeated:
        return lambda pb: [convert(item) for item in getattr(pb, name)] if convert else list(getattr(pb, name))
    if field.has_presence:
        return lambda pb: _present(pb, name, convert)
    return lambda pb: convert(getattr(pb, name)) if convert else getattr(pb, name)


def _present(pb: Any, name: str, convert: Callable[[Any], Any] | None) -> Any:
    if not pb.HasField(name):
        return None
    return convert(getattr(pb, name)) if convert else getattr(pb, name)


def _tuple_getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) > 1:
        return attrgetter(*names)
    get = attrgetter(*names) if names else None
    return lambda value: () if get is None else (get(value),)


def _exclusive_attributes(fields: Iterable[_Field]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    oneofs: dict[str, list[str]] = {}
    for field in fields:
        if field.oneof is not None:
            oneofs.setdefault(field.oneof, []).append(field.attribute)
    return tuple((name, tuple(attributes)) for name, attributes in oneofs.items())


def _rivals(descriptor: Descriptor, gathered: Iterable[int]) -> dict[int, tuple[int, ...]]:
    """For each member of a oneof that can hold a tensor: the members that it displaces when it comes later."""
    numbers = set(gathered)
    found: dict[int, tuple[int, ...]] = {}
    for oneof in descriptor.oneofs:
        members = [f.number for f in oneof.fields]
        if numbers & set(members):
            found |= {n: tuple(m for m in members if m != n) for n in members}
    return found


def _checked(dtype: int, shape: Iterable[int], data: bytes | memoryview) -> Tensor:
    try:
        return Tensor(DType(dtype), tuple(shape), data)
    except ValueError as error:
        raise DecodeError(str(error)) from None


def _view(buffer: bytes, start: int, end: int) -> bytes | memoryview:
    if end - start < VIEW_FROM:
        return buffer[start:end]
    view = memoryview(buffer)[start:end]
    address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return view if address % ALIGNMENT == 0 else bytes(view)


def _padding(gap: int) -> bytes:
    """A `padding` field that takes `gap` bytes in all, or one alignment more where `gap` is too small for a field."""
    if gap == 0:
        return b""
    size = gap if gap >= 2 else gap + ALIGNMENT
    return b"\x72" + bytes([size - 2]) + bytes(size - 2)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _scan(buffer: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """The fields in `buffer[start:end]`, each as (number, wire type, start of its tag, start of its content, end).

    Source: https://protobuf.dev/programming-guides/encoding/. Raises DecodeError where they do not fit.
    """
    position = start
    while position < end:
        key, body = _read_varint(buffer, position, end)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise DecodeError(f"field number {number} at byte {position}")
        content, stop = _content(buffer, body, end, wire_type, number)
        yield number, wire_type, position, content, stop
        position = stop


def _content(buffer: bytes, body: int, end: int, wire_type: int, number: int, depth: int = 0) -> tuple[int, int]:
    if wire_type == _LENGTH:
        length, body = _read_varint(buffer, body, end)
        stop = body + length
    elif wire_type == 0:
        _, stop = _read_varint(buffer, body, end)
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
        key, body = _read_varint(buffer, position, end)
        if key & 7 == 4:
            if key >> 3 != number:
                raise DecodeError(f"group {number} is closed as {key >> 3}")
            return body
        _, position = _content(buffer, body, end, key & 7, key >> 3, depth)


def _read_varint(buffer: bytes, position: int, end: int) -> tuple[int, int]:
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
