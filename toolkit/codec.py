"""Messages to bytes and back. The bytes are ordinary protobuf.

Two ways meet here. The scalar parts of a message go through protobuf's own C implementation. Tensors never do, because
it would copy their elements at every step: on the way out they are gathered by reference into one join, on the way in
they are slices of the message that arrived. A message type is split once, on first use, into a `_Plan`: the fields that
can hold no tensor ("plain") and those that can ("gathered").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, TypeVar, cast

import numpy as np
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from toolkit.message import Message, class_of
from toolkit.tensor import ALIGNMENT, DType, Tensor
from toolkit.wire import LENGTH, MAX_DEPTH, DecodeError, scan, varint

__all__ = ["DecodeError", "EncodeError", "decode", "encode"]

M = TypeVar("M")

VIEW_FROM: Final = 4096
"""Payloads below this many bytes are copied out: cheaper than padding, and a small view would pin a large message."""
MAX_TENSORS: Final = 16384
"""Tensors in one message."""
ALIGNED_DEPTH: Final = 4
"""Nesting down to which tensors are aligned: each level may have to be laid out again when its length takes another size."""


class EncodeError(ValueError):
    """The message cannot be encoded: a field holds the wrong type, or two members of a oneof are set."""


def encode(message: Any) -> bytes:
    """The protobuf encoding of a generated message, a `Tensor`, or one of protobuf's own messages.

    Raises EncodeError naming the field at fault.
    """
    try:
        return _plan(type(message)).encode(message)
    except RecursionError:
        raise EncodeError(
            f"{type(message).__name__}: nested too deeply; {MAX_DEPTH} levels is what others read"
        ) from None


def decode(cls: type[M], data: bytes) -> M:
    """The message of type `cls` in `data`. Its large tensors are views of `data`. Raises DecodeError."""
    try:
        return cast("M", _plan(cls).decode(data))
    except ProtobufDecodeError as error:
        raise DecodeError(str(error)) from None
    except RecursionError:
        raise DecodeError("nested too deeply") from None


class _Field:
    """A field of a message: how its value goes to and comes from protobuf's own message."""

    __slots__ = ("attribute", "oneof", "read", "read_line", "set_line", "write")

    def __init__(self, field: FieldDescriptor, attribute: str) -> None:
        self.attribute = attribute
        oneof = field.containing_oneof
        self.oneof = oneof.name if oneof is not None and len(oneof.fields) > 1 else None
        self.write = _writer(field)
        """(pb, value): set the field in protobuf's message."""
        self.read = _reader(field)
        """(pb): its value from protobuf's message."""
        theirs = f"pb.{field.name}" if attribute == field.name else None
        always = not (field.is_repeated or field.has_presence)
        self.set_line = f"write(pb, message.{attribute})"
        self.read_line = f"message.{attribute} = read(pb)"
        if not always:
            self.set_line = f"if (value := message.{attribute}) is not None: write(pb, value)"
        if theirs and always:
            self.set_line = f"{theirs} = message.{attribute}"
            if field.enum_type is None:
                self.read_line = f"message.{attribute} = {theirs}"


def _straight_line(signature: str, lines: list[str], helpers: list[Callable[..., Any]]) -> Callable[[Any, Any], None]:
    """A function of these lines, each with a helper `write` or `read` of its own: moving a field costs an instruction or
    two, and no loop. Every name in a line is an identifier that protobuf has checked.
    """
    body = [re.sub(r"\b(write|read)\(", f"helper{i}(", line) for i, line in enumerate(lines)] or ["pass"]
    namespace: dict[str, Any] = {f"helper{i}": helper for i, helper in enumerate(helpers)}
    exec(f"def move({signature}):\n " + "\n ".join(body), namespace)
    return cast("Callable[[Any, Any], None]", namespace["move"])


class _MessagePlan:
    """How one message type moves to and from bytes."""

    def __init__(self, descriptor: Descriptor, cls: type[Any], renamed: dict[str, str]) -> None:
        fields = [(f, _Field(f, renamed.get(f.name, f.name))) for f in descriptor.fields]
        self.cls = cls
        self._name = _display_name(descriptor)
        self.pb: Any = message_factory.GetMessageClass(descriptor)
        self.gathered = {f.number: _Gathered(f, plan, self._name) for f, plan in fields if _is_gathered(f)}
        plain = [plan for f, plan in fields if f.number not in self.gathered]
        self._small = tuple(plan for f, plan in fields if f.number in self.gathered)
        self._oneofs = _exclusive_attributes(plan for _, plan in fields)
        self._rivals = _rivals(descriptor, self.gathered)
        self._plain_fields = plain
        self._set_all = _straight_line("pb, message", [f.set_line for f in plain], [f.write for f in plain])
        self._read_all = _straight_line("pb, message", [f.read_line for f in plain], [f.read for f in plain])

    def fill(self, pb: Any, message: Any) -> None:
        """Set the plain fields of protobuf's message, and what this side does not know."""
        try:
            self._set_all(pb, message)
        except (EncodeError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._culprit(message, error) from None
        if self._oneofs:
            self._check_oneofs(message)
        unknown = getattr(message, "_unknown", b"")
        if unknown:
            pb.MergeFromString(unknown)

    def encode(self, message: Any) -> bytes:
        return _joined(self, message) if self.gathered else self.plain_bytes(message)

    def plain_bytes(self, message: Any) -> bytes:
        """The encoding of what `fill` sets."""
        pb = self.pb()
        self.fill(pb, message)
        return pb.SerializeToString()  # type: ignore[no-any-return]  # protobuf's message is Any here

    def gather(self, value: Any, parts: list[bytes | memoryview], offset: int | None, depth: int = 0) -> int:
        """Append the encoding to `parts`, and return its length. `offset` is where it starts in the outermost message,
        so that tensors can be aligned; None leaves them where they fall.
        """
        head = self.plain_bytes(value)
        parts.append(head)
        size = len(head)
        for field in self.gathered.values():
            found = getattr(value, field.attribute)
            for item in () if found is None else field.items(found):
                size += field.gather(item, parts, None if offset is None else offset + size, depth + 1)
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
        message = self._plain(pb)
        for field in self._small:
            setattr(message, field.attribute, field.read(pb))
        return message

    def slice(self, buffer: bytes, start: int, end: int, budget: _Budget, depth: int = 0) -> Any:
        """The message in `buffer[start:end]`; tensors become views of `buffer`. Its semantics are those of any
        protobuf parser, occurrences in any order included.
        """
        if depth > MAX_DEPTH:
            raise DecodeError(f"messages nested deeper than {MAX_DEPTH}")
        plain: list[tuple[int, int]] = []
        members: dict[int, list[tuple[int, int]]] = {}  # plain members of a oneof, which a later member displaces
        found: dict[int, list[tuple[int, int]]] = {}
        for number, wire_type, tag, body, stop in scan(buffer, start, end):
            rivals = self._rivals.get((number, wire_type)) if self._rivals else None
            for rival in rivals or ():
                found.pop(rival, None)
                members.pop(rival, None)
            if wire_type == LENGTH and number in self.gathered:
                found.setdefault(number, []).append((body, stop))
            elif rivals:
                members.setdefault(number, []).append((tag, stop))
            elif plain and plain[-1][1] == tag:
                plain[-1] = (plain[-1][0], stop)
            else:
                plain.append((tag, stop))
        pb = self.pb.FromString(b"".join(buffer[a:b] for a, b in chain(plain, *members.values())))
        message = self._plain(pb)
        for number, field in self.gathered.items():
            setattr(message, field.attribute, field.slice(buffer, found.get(number, ()), budget, depth + 1))
        return message

    def _plain(self, pb: Any) -> Any:
        """A message with the plain fields set, and nothing but them."""
        message = object.__new__(self.cls)
        self._read_all(pb, message)
        if len(UnknownFieldSet(pb)):
            message._unknown = _unknown_bytes(pb)
        return message

    def _culprit(self, message: Any, error: Exception) -> EncodeError:
        """The error that names the field: each is tried alone."""
        for field in self._plain_fields:
            try:
                _straight_line("pb, message", [field.set_line], [field.write])(self.pb(), message)
            except EncodeError as inner:
                return EncodeError(f"{self._name}.{field.attribute}: {inner}")
            except (TypeError, ValueError, AttributeError, OverflowError) as inner:
                value = getattr(message, field.attribute, None)
                what = f"{type(value).__name__} {value!r:.80}"
                return EncodeError(f"{self._name}.{field.attribute}: {what} does not fit: {inner}")
        return EncodeError(f"{self._name}: {error}")

    def _check_oneofs(self, message: Any) -> None:
        for name, attributes in self._oneofs:
            both = [a for a in attributes if getattr(message, a) is not None]
            if len(both) > 1:
                raise EncodeError(f"{self._name}: {' and '.join(both)} are both set, of oneof {name} only one may be")


class _TensorPlan:
    """How `Tensor` moves to and from bytes: the one type whose payload never passes through protobuf."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.pb: Any = message_factory.GetMessageClass(descriptor)

    def gather(self, value: Tensor, parts: list[bytes | memoryview], offset: int | None, depth: int = 0) -> int:
        dims = b"".join(map(varint, value.shape))
        head = b"\x08" + varint(value.dtype) + (b"\x12" + varint(len(dims)) + dims if dims else b"")
        payload = value.data
        if not payload.nbytes:
            parts.append(head)
            return len(head)
        length = b"\x7a" + varint(payload.nbytes)
        if offset is not None and payload.nbytes >= VIEW_FROM:
            head += _padding(-(offset + len(head) + len(length)) % ALIGNMENT)
        parts.append(head + length)
        parts.append(payload)
        return len(head) + len(length) + payload.nbytes

    def encode(self, value: Tensor) -> bytes:
        return _joined(self, value)

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
        for number, wire_type, tag, body, stop in scan(buffer, start, end):
            if number == _DATA and wire_type == LENGTH:
                payload = (body, stop)
            elif number != _PADDING:
                header.append(buffer[tag:stop])
        pb = self.pb.FromString(b"".join(header))
        return _checked(pb.dtype, pb.shape, _view(buffer, *payload))


class _ForeignPlan:
    """protobuf's own messages, google.protobuf.* above all, move by themselves."""

    def __init__(self, cls: type[ProtobufMessage]) -> None:
        self.decode = cls.FromString

    def encode(self, message: ProtobufMessage) -> bytes:
        return message.SerializeToString()


_Plan = _MessagePlan | _TensorPlan | _ForeignPlan
_DATA: Final = 15
_PADDING: Final = 14


class _Gathered:
    """A field through which tensors can be reached."""

    def __init__(self, field: FieldDescriptor, plain: _Field, owner: str) -> None:
        self.attribute = plain.attribute
        self._name = f"{owner}.{plain.attribute}"
        self._tag = varint(field.number << 3 | LENGTH)
        self._descriptor = _message_type(field)
        self._is_map = self._descriptor.GetOptions().map_entry
        self._is_repeated = field.is_repeated

    @property
    def plan(self) -> Any:
        """That of a message or a tensor, by the field's type."""
        return _entry_plan(self._descriptor) if self._is_map else _plan_of(self._descriptor)

    def items(self, value: Any) -> Iterable[Any]:
        """Its occurrences. Raises EncodeError where one is of another type than the field's."""
        if self._is_map:
            self._check(value, dict)
            return [_Entry(key, item) for key, item in value.items()]
        if self._is_repeated:
            self._check(value, list, tuple)
        items = value if self._is_repeated else (value,)
        cls = _class_of(self._descriptor)
        for item in items:
            self._check(item, cls)
        return cast("Iterable[Any]", items)

    def gather(self, item: Any, parts: list[bytes | memoryview], offset: int | None, depth: int) -> int:
        """Tag, length and content. The length's own size shifts the content, so it is guessed from the tensors first;
        where padding pushes the length over to another size and back, the content goes unaligned.
        """
        plan = self.plan
        weight = 0 if offset is None or depth > ALIGNED_DEPTH else plan.weight(item)
        is_aligned = offset is not None and weight >= VIEW_FROM
        size = len(varint(weight))
        for start in (offset, offset, None) if is_aligned else (None,):
            body: list[bytes | memoryview] = []
            length = varint(plan.gather(item, body, None if start is None else start + len(self._tag) + size, depth))
            if start is None or len(length) == size:
                break
            size = len(length)
        parts.append(self._tag + length)
        parts.extend(body)
        return len(self._tag) + len(length) + sum(len(part) for part in body)

    def _check(self, value: Any, *types: type[Any]) -> None:
        if type(value) not in types:
            cure = "; Tensor.of() makes one of an array" if types == (Tensor,) else ""
            raise EncodeError(f"{self._name}: expected {types[0].__name__}, got {type(value).__name__}{cure}")

    def slice(self, buffer: bytes, found: Iterable[tuple[int, int]], budget: _Budget, depth: int) -> Any:
        plan = self.plan
        if self._is_repeated:
            items = [plan.slice(buffer, start, end, budget, depth) for start, end in found]
            return {e.key: self._empty() if e.value is None else e.value for e in items} if self._is_map else items
        occurrences = list(found)
        if len(occurrences) == 1:
            return plan.slice(buffer, *occurrences[0], budget, depth)
        if not occurrences:
            return None
        merged = b"".join(buffer[start:end] for start, end in occurrences)  # what protobuf defines a repeat to mean
        return plan.slice(merged, 0, len(merged), budget, depth)

    def _empty(self) -> Any:
        """What an entry of a map without a value stands for."""
        return decode(_class_of(_message_type(self._descriptor.fields_by_name["value"])), b"")


@dataclass(slots=True)
class _Entry:
    """An entry of a map, which on the wire is a repeated message of key and value."""

    key: Any
    value: Any
    _unknown: bytes = b""


def _joined(plan: _MessagePlan | _TensorPlan, value: Any) -> bytes:
    """The one copy of the tensors on their way out."""
    parts: list[bytes | memoryview] = []
    plan.gather(value, parts, 0)
    return b"".join(parts)


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
    if issubclass(cls, ProtobufMessage):
        return _ForeignPlan(cls)
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


def _unknown_bytes(pb: Any) -> bytes:
    rest = type(pb)()
    rest.CopyFrom(pb)
    for field, _ in pb.ListFields():
        rest.ClearField(field.name)
    return rest.SerializeToString()  # type: ignore[no-any-return]  # protobuf's message is Any here


def _writer(field: FieldDescriptor) -> Callable[[Any, Any], None]:
    name = field.name
    if _is_map(field):
        return _map_writer(name, _message_type(field).fields_by_name["value"])
    fill = _filler(field)
    if fill is None:
        if field.is_repeated:
            return lambda pb, value: getattr(pb, name).extend(value) if value else None
        return lambda pb, value: setattr(pb, name, value)
    if field.is_repeated:
        return lambda pb, value: _fill_list(getattr(pb, name), value, fill)
    return lambda pb, value: fill(getattr(pb, name), value)


def _map_writer(name: str, item: FieldDescriptor) -> Callable[[Any, Any], None]:
    fill = _filler(item)
    if fill is None:
        return lambda pb, value: getattr(pb, name).update(value) if value else None
    return lambda pb, value: _fill_map(getattr(pb, name), value, fill)


def _fill_list(container: Any, items: list[Any], fill: Callable[[Any, Any], None]) -> None:
    for item in items:
        fill(container.add(), item)


def _fill_map(container: Any, items: dict[Any, Any], fill: Callable[[Any, Any], None]) -> None:
    for key, item in items.items():
        fill(container[key], item)


def _filler(field: FieldDescriptor) -> Callable[[Any, Any], None] | None:
    """How to copy a message of the field's type into protobuf's; None for scalars."""
    if field.message_type is None:
        return None
    cls = _class_of(field.message_type)

    def fill(pb: Any, value: Any) -> None:
        if type(value) is not cls:
            raise EncodeError(f"expected {cls.__name__}, got {type(value).__name__}")
        pb.SetInParent()
        if isinstance(value, ProtobufMessage):
            pb.CopyFrom(value)
        else:
            cast("_MessagePlan", _plan(cls)).fill(pb, value)

    return fill


def _reader(field: FieldDescriptor) -> Callable[[Any], Any]:
    name = field.name
    if _is_map(field):
        convert = _converter(_message_type(field).fields_by_name["value"])
        if convert is None:
            return lambda pb: dict(getattr(pb, name))
        return lambda pb: {key: convert(item) for key, item in getattr(pb, name).items()}
    return _field_reader(field, name, _converter(field))


def _field_reader(field: FieldDescriptor, name: str, convert: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    if convert is None and field.is_repeated:
        return lambda pb: list(getattr(pb, name))
    if convert is None and not field.has_presence:
        return lambda pb: getattr(pb, name)
    if convert is None:
        return lambda pb: getattr(pb, name) if pb.HasField(name) else None
    if field.is_repeated:
        return lambda pb: [convert(item) for item in getattr(pb, name)]
    if field.has_presence:
        return lambda pb: convert(getattr(pb, name)) if pb.HasField(name) else None
    return lambda pb: convert(getattr(pb, name))


def _converter(field: FieldDescriptor) -> Callable[[Any], Any] | None:
    """How one item of the field comes from protobuf; None where it stays the same."""
    if field.enum_type is not None:
        return class_of(field.enum_type.full_name)
    if field.message_type is None or issubclass(cls := _class_of(field.message_type), ProtobufMessage):
        return None
    return lambda pb: cast("_MessagePlan", _plan(cls)).from_pb(pb)


def _exclusive_attributes(fields: Iterable[_Field]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    oneofs: dict[str, list[str]] = {}
    for field in fields:
        if field.oneof is not None:
            oneofs.setdefault(field.oneof, []).append(field.attribute)
    return tuple((name, tuple(attributes)) for name, attributes in oneofs.items())


def _rivals(descriptor: Descriptor, gathered: Iterable[int]) -> dict[tuple[int, int], tuple[int, ...]]:
    """For each member of a oneof that can hold a tensor, by number and wire type: the members that it displaces when it
    comes later.
    """
    numbers = set(gathered)
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    for oneof in descriptor.oneofs:
        members = [f.number for f in oneof.fields]
        if numbers & set(members):
            found |= {(f.number, _wire_type(f)): tuple(m for m in members if m != f.number) for f in oneof.fields}
    return found


def _wire_type(field: FieldDescriptor) -> int:
    """That of one occurrence, not packed."""
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FIXED64, field.TYPE_SFIXED64):
        return 1
    if field.type in (field.TYPE_FLOAT, field.TYPE_FIXED32, field.TYPE_SFIXED32):
        return 5
    return LENGTH if field.type in (field.TYPE_STRING, field.TYPE_BYTES, field.TYPE_MESSAGE) else 0


def _display_name(descriptor: Descriptor) -> str:
    """How errors name a message type: an entry of a map by the map's field."""
    outer = descriptor.containing_type
    if outer is None or not descriptor.GetOptions().map_entry:
        return descriptor.name
    return next(f"{outer.name}.{f.name}" for f in outer.fields if f.message_type is descriptor)


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
