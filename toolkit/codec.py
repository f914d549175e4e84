"""Messages to bytes and back. The bytes are ordinary protobuf.

Two ways meet here. The scalar parts of a message go through protobuf's own C implementation. Tensors never do, because
it would copy their elements at every step: on the way out they are gathered by reference into one join, on the way in
they are slices of the message that arrived. A message type is split once, on first use, into a `_Plan`: the fields that
can hold no tensor ("plain") and those that can ("gathered").
"""

from __future__ import annotations

import keyword
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, Final, TypeVar, cast

import numpy as np
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import DecodeError as ProtobufDecodeError
from google.protobuf.message import EncodeError as ProtobufEncodeError
from google.protobuf.message import Message as ProtobufMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from toolkit.budget import MAX_TENSORS, Budget, growth, table_of
from toolkit.limits import DEFAULT
from toolkit.message import Enum, Message, class_of
from toolkit.tensor import ALIGNMENT, DType, Tensor
from toolkit.wire import GROUP, LENGTH, MAX_DEPTH, DecodeError, scan, varint

__all__ = ["MAX_TENSORS", "DecodeError", "EncodeError", "decode", "encode"]

M = TypeVar("M")
T = TypeVar("T")

HEADS: Final = 1024
"""Tensors' heads that are remembered, ready made and ready read: a service sees few different dtypes and shapes."""
USUAL_HEAD: Final = 256
"""Bytes: longer heads are read and forgotten."""
VIEW_FROM: Final = 4096
"""Payloads below this many bytes are copied out: cheaper than padding, and a small view would pin a large message."""


class EncodeError(ValueError):
    """The message cannot be encoded: a field holds the wrong type, or two members of a oneof are set."""


def encode(message: Any) -> bytes:
    """The protobuf encoding of a generated message, a `Tensor`, or one of protobuf's own messages.

    Raises EncodeError naming the field at fault.
    """
    try:
        return (_plans.get(type(message)) or _plan(type(message))).encode(message)
    except RecursionError:
        raise EncodeError(
            f"{type(message).__name__}: nested too deeply; {MAX_DEPTH} levels is what others read"
        ) from None
    except ProtobufEncodeError as error:
        raise EncodeError(f"{type(message).__name__}: {error}") from None


def decode(cls: type[M], data: bytes, limit: int = DEFAULT) -> M:
    """The message of type `cls` in `data`. Its large tensors are views of `data`.

    Raises DecodeError, also for a message whose objects would take more than `limit` bytes of memory (see toolkit.budget).
    """
    plan = _plans.get(cls) or _plan(cls)
    try:
        if len(data) >= VIEW_FROM:
            if plan.lone is not None and (message := plan.lone.read(data)) is not None:
                return cast("M", message)
            if plan.slices or plan.growth.may_exceed(limit, len(data)):
                Budget(limit).charge(plan.table, data, 0, len(data))
        return cast("M", plan.decode(data))
    except (ProtobufDecodeError, UnicodeDecodeError) as error:
        raise DecodeError(str(error)) from None
    except RecursionError:
        raise DecodeError("nested too deeply") from None


class _Field:
    """A field of a message: the lines that move its value to and from protobuf's own message, and what they call."""

    __slots__ = ("attribute", "helpers", "oneof", "read_line", "set_line")

    def __init__(self, field: FieldDescriptor, attribute: str, owner: str) -> None:
        self.attribute = attribute
        oneof = field.containing_oneof
        self.oneof = oneof.name if oneof is not None and len(oneof.fields) > 1 else None
        prefix = f"f{field.number}_"
        self.set_line, writer = _set_line(field, attribute, f"{prefix}write", f"{owner}.{attribute}")
        self.read_line, converter = _read_line(field, attribute, f"{prefix}convert")
        self.helpers = {f"{prefix}write": writer, f"{prefix}convert": converter}


def _straight_line(signature: str, lines: list[str], helpers: dict[str, Any]) -> Callable[..., Any]:
    """A function of these lines: moving a field costs an instruction or two, and no loop. Every name in a line is an
    identifier that protobuf has checked.
    """
    namespace = dict(helpers)
    exec(f"def move({signature}):\n " + "\n ".join(lines or ["pass"]), namespace)
    return cast("Callable[..., Any]", namespace["move"])


class _MessagePlan:
    """How one message type moves to and from bytes."""

    def __init__(self, descriptor: Descriptor, cls: type[Any], renamed: dict[str, str]) -> None:
        self.cls = cls
        self.pb: Any = message_factory.GetMessageClass(descriptor)
        self.table, self.growth = table_of(descriptor), growth(descriptor)
        self._name = _display_name(descriptor)
        fields = [(f, _Field(f, renamed.get(f.name, f.name), self._name)) for f in descriptor.fields]
        plain = [plan for f, plan in fields if not _is_gathered(f)]
        self.gathered = {f.number: _Gathered(f, plan, self._name) for f, plan in fields if _is_gathered(f)}
        self.slices = bool(self.gathered)
        self._oneofs = _exclusive_attributes(plan for _, plan in fields)
        self._members = _members(descriptor, self.gathered)
        self._plain_fields = plain
        helpers = {
            **{name: helper for _, f in fields for name, helper in f.helpers.items()},
            "has": self.pb.HasField,
            "merge": self.pb.MergeFromString,
            "pack": self.pb.SerializeToString,
            "new_pb": self.pb,
            "parse": self.pb.FromString,
            "new": object.__new__,
            "cls": cls,
            "unknown_fields": UnknownFieldSet,
            "unknown_bytes": _unknown_bytes,
        }
        self._helpers = helpers
        sets = [*(f.set_line for f in plain), "if message._unknown: merge(pb, message._unknown)"]
        reads = [
            "message = new(cls)",
            *(f.read_line for _, f in fields),
            "message._unknown = unknown_bytes(unknown) if len(unknown := unknown_fields(pb)) else b''",
            "return message",
        ]
        self._set_all = _straight_line("pb, message, depth", sets, helpers)
        self._write = _straight_line("message, depth=0", ["pb = new_pb()", *sets, "return pack(pb)"], helpers)
        self._read_plain = _straight_line("pb, message", [f.read_line for f in plain], helpers)
        self._read = _straight_line("data", ["pb = parse(data)", *reads], helpers)
        self.from_pb = _straight_line("pb", reads, helpers)
        lone = [(f.number, plan) for f, plan in fields if _is_gathered(f)]
        self.lone = _LoneTensor(self, *lone[0]) if len(lone) == 1 and _is_lone(descriptor, lone[0][0], cls) else None

    def fill(self, pb: Any, message: Any, depth: int) -> None:
        """Set the plain fields of protobuf's message, and what this side does not know."""
        if depth > MAX_DEPTH:
            raise RecursionError
        try:
            self._set_all(pb, message, depth)
        except EncodeError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._culprit(message, error) from None
        if self._oneofs:
            self._check_oneofs(message)

    def encode(self, message: Any) -> bytes:
        if self.gathered:
            return _joined(self, message) if self.lone is None else self.lone.encode(message)
        try:
            data: bytes = self._write(message)
        except EncodeError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._culprit(message, error) from None
        if self._oneofs:
            self._check_oneofs(message)
        return data

    def plain_bytes(self, message: Any, depth: int) -> bytes:
        """The encoding of what `fill` sets."""
        pb = self.pb()
        self.fill(pb, message, depth)
        return self.pb.SerializeToString(pb)  # type: ignore[no-any-return]  # protobuf's message is Any here

    def gather(self, value: Any, out: _Parts, depth: int) -> int:
        """Append the encoding to `out`, and return its length, any padding apart."""
        head = self.plain_bytes(value, depth)
        out.parts.append(head)
        found = ((field, getattr(value, field.attribute)) for field in self.gathered.values())
        return len(head) + sum(field.gather(each, out, depth + 1) for field, each in found if each is not None)

    def decode(self, data: bytes) -> Any:
        if self.gathered and len(data) >= VIEW_FROM:
            message = self.slice(data, ((0, len(data)),), 0)
            if self.lone is not None:
                self.lone.learn(data, message)
            return message
        return self._read(data)

    def read_plain(self, plain: bytes) -> Any:
        """A message that has only plain fields yet."""
        message = object.__new__(self.cls)
        self._read_plain(self.pb.FromString(plain), message)
        message._unknown = b""
        return message

    def slice(self, buffer: bytes, ranges: Iterable[tuple[int, int]], depth: int) -> Any:
        """The message that these ranges of `buffer` make together; tensors become views of `buffer`. Its semantics are
        those of protobuf's own parser, occurrences in any order included. Of an entry of a map the value is where it lies;
        one that has a field besides key and value is None: protobuf takes the whole of it for an unknown field.
        """
        plain: list[tuple[int, int]] = []
        members: dict[int, list[tuple[int, int]]] = {}  # plain members of a oneof, which a later member displaces
        found: dict[int, list[tuple[int, int]]] = {}
        for start, end in ranges:
            for number, wire_type, tag, body, stop in scan(buffer, start, end, depth):
                member = self._members.get((number, wire_type)) if self._members else None
                if (
                    member is not None
                    and member.numbers is not None
                    and _number(buffer[body:stop]) not in member.numbers
                ):
                    member = None
                for rival in () if member is None else member.rivals:
                    if rival in found:
                        _check_valid(self.gathered[rival].plan.pb, buffer, found.pop(rival))
                    _check_valid(self.pb, buffer, members.pop(rival, ()))
                if wire_type == LENGTH and number in self.gathered:
                    found.setdefault(number, []).append((body, stop))
                elif member is not None:
                    members.setdefault(number, []).append((tag, stop))
                elif plain and plain[-1][1] == tag:
                    plain[-1] = (plain[-1][0], stop)
                else:
                    plain.append((tag, stop))
        pb = self.pb.FromString(b"".join(buffer[a:b] for a, b in chain(plain, *members.values())))
        unknown = _unknown_bytes(fields) if len(fields := UnknownFieldSet(pb)) else b""
        if unknown and self.cls is _Entry:
            return None
        message = object.__new__(self.cls)
        self._read_plain(pb, message)
        for number, field in self.gathered.items():
            runs: Sequence[tuple[int, int]] = found.get(number, ())
            value, strange = (runs, b"") if self.cls is _Entry else field.slice(buffer, runs, depth + 1)
            setattr(message, field.attribute, value)
            unknown += strange
        message._unknown = unknown
        return message

    def _culprit(self, message: Any, error: Exception) -> EncodeError:
        """The error that names the field: each is tried alone."""
        for field in self._plain_fields:
            try:
                _straight_line("pb, message, depth", [field.set_line], self._helpers)(self.pb(), message, 0)
            except EncodeError as inner:
                return inner
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


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in a message whose last field is a tensor."""

    header: bytes
    """All that comes before the elements."""
    plain: bytes
    """What of it is not the tensor's."""
    dtype: DType
    shape: tuple[int, ...]
    residue: int
    """Of the message's address, by which the elements are aligned. CPython's `id` is the address of an object, and the
    content of bytes begins at the same distance from it always."""


class _LoneTensor:
    """A short cut for the usual message: one tensor, behind everything else. What comes before the elements is mostly as
    in an earlier message, so that it is remembered: neither made nor looked through again. It decides nothing by itself;
    what it remembers was made, or checked, on the way that all messages go.
    """

    def __init__(self, plan: _MessagePlan, number: int, field: _Field) -> None:
        self._plan = plan
        self._number = number
        self._attribute = field.attribute
        self._frames: dict[tuple[int, int, tuple[int, ...]], bytes] = {}
        self._layouts: dict[int, _Layout] = {}

    def encode(self, message: Any) -> bytes:
        tensor = getattr(message, self._attribute)
        if type(tensor) is not Tensor or tensor.data.nbytes < VIEW_FROM:
            return _joined(self._plan, message)
        head = self._plan.plain_bytes(message, 0)
        key = (len(head) % ALIGNMENT, tensor.dtype, tensor.shape)
        frame = self._frames.get(key)
        if frame is None:
            frame = _remember(self._frames, key, self._frame(key[0], tensor))
        return b"".join((head, frame, tensor.data))

    def _frame(self, offset: int, tensor: Tensor) -> bytes:
        """What comes between fields that end at `offset` and the elements."""
        out = _Parts()
        out.parts.append(bytes(offset))
        self._plan.gathered[self._number].gather(tensor, out, 1)
        out.settle()
        return b"".join(out.parts[1:-1])

    def read(self, data: bytes) -> Any:
        """The message in `data`, or None where there was none like it yet."""
        layout = self._layouts.get(len(data))
        if layout is None or not data.startswith(layout.header) or id(data) % ALIGNMENT != layout.residue:
            return None
        message = self._plan.read_plain(layout.plain)
        elements = memoryview(data)[len(layout.header) :]
        setattr(message, self._attribute, Tensor.of_checked(layout.dtype, layout.shape, elements))
        return message

    def learn(self, data: bytes, message: Any) -> None:
        """Remember how `data` begins, where that alone says what is in `message`, which was read from it."""
        tensor: Tensor | None = getattr(message, self._attribute)
        if tensor is None or tensor.data.obj is not data or tensor.dtype == DType.BOOL:
            return
        if message._unknown:
            return
        start, end = len(data) - tensor.nbytes, len(data)
        if start > USUAL_HEAD:
            return
        plain: list[bytes] = []
        for number, _, tag, body, stop in scan(data, 0, end):
            if number != self._number:
                plain.append(data[tag:stop])
            elif [(b, e) for n, _, _, b, e in scan(data, body, stop) if n == _DATA] != [(start, end)]:
                return
        layout = _Layout(data[:start], b"".join(plain), tensor.dtype, tensor.shape, id(data) % ALIGNMENT)
        _remember(self._layouts, end, layout)


def _remember(known: dict[Any, T], key: Any, value: T) -> T:
    if len(known) >= HEADS:
        known.clear()
    known[key] = value
    return value


def _is_lone(descriptor: Descriptor, number: int, cls: type[Any]) -> bool:
    field = descriptor.fields_by_number[number]
    is_tensor = _message_type(field).full_name == "toolkit.v1.Tensor"
    return is_tensor and not field.is_repeated and field.containing_oneof is None and cls is not _Entry


class _TensorPlan:
    """How `Tensor` moves to and from bytes: the one type whose payload never passes through protobuf."""

    def __init__(self, descriptor: Descriptor) -> None:
        self.pb: Any = message_factory.GetMessageClass(descriptor)
        self.table, self.growth = table_of(descriptor), growth(descriptor)
        self._usual_head = lru_cache(HEADS)(self._read_head)

    slices = True
    lone: Final = None

    def gather(self, value: Tensor, out: _Parts, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise RecursionError
        head = _tensor_head(value.dtype, value.shape)
        payload = value.data
        if not payload.nbytes:
            out.parts.append(head)
            return len(head)
        length = b"\x7a" + varint(payload.nbytes)
        if payload.nbytes < VIEW_FROM:
            out.parts += (head + length, payload)
        else:
            out.parts.append(head)
            out.align_next()
            out.parts += (length, payload)
        return len(head) + len(length) + payload.nbytes

    def encode(self, value: Tensor) -> bytes:
        return _joined(self, value)

    def from_pb(self, pb: Any) -> Tensor:
        return _checked(pb.dtype, pb.shape[:], pb.data)

    def decode(self, data: bytes) -> Tensor:
        return self.slice(data, ((0, len(data)),), 0)

    def slice(self, buffer: bytes, ranges: Iterable[tuple[int, int]], depth: int) -> Tensor:
        header: list[bytes] = []
        payload = (0, 0)
        for start, end in ranges:
            for number, wire_type, tag, body, stop in scan(buffer, start, end, depth):
                if number == _DATA and wire_type == LENGTH:
                    payload = (body, stop)
                elif number != _PADDING:
                    header.append(buffer[tag:stop])
        head = b"".join(header)
        dtype, shape = self._usual_head(head) if len(head) <= USUAL_HEAD else self._read_head(head)
        return _checked(dtype, shape, _view(buffer, *payload))

    def _read_head(self, head: bytes) -> tuple[int, tuple[int, ...]]:
        pb = self.pb.FromString(head)
        return pb.dtype, tuple(pb.shape)


@lru_cache(HEADS)
def _tensor_head(dtype: int, shape: tuple[int, ...]) -> bytes:
    """Everything of a tensor that comes before its elements."""
    dims = b"".join(map(varint, shape))
    return b"\x08" + varint(dtype) + (b"\x12" + varint(len(dims)) + dims if dims else b"")


class _ForeignPlan:
    """protobuf's own messages, google.protobuf.* above all, move by themselves."""

    def __init__(self, cls: type[ProtobufMessage]) -> None:
        descriptor = cast("Descriptor", cls.DESCRIPTOR)
        self.table, self.growth = table_of(descriptor), growth(descriptor)
        self.decode = cls.FromString

    slices = False
    lone: Final = None

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
        self._is_map = _is_map(field)
        self._is_repeated = field.is_repeated
        self._is_always_there = _is_entry(field.containing_type)

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

    def gather(self, value: Any, out: _Parts, depth: int) -> int:
        """Of each occurrence tag, length and content; returns how long they are together."""
        plan, total = self.plan, 0
        for item in self.items(value):
            frame = out.begin(self._tag)
            frame.size = plan.gather(item, out, depth)
            total += out.end(frame)
        return total

    def _check(self, value: Any, *types: type[Any]) -> None:
        if type(value) not in types:
            cure = "; Tensor.of() makes one of an array" if types == (Tensor,) else ""
            raise EncodeError(f"{self._name}: expected {types[0].__name__}, got {type(value).__name__}{cure}")

    def slice(self, buffer: bytes, found: Sequence[tuple[int, int]], depth: int) -> tuple[Any, bytes]:
        """The field's value, and what is to be kept as unknown instead."""
        plan = self.plan
        if self._is_map:
            (field,) = plan.gathered.values()
            values: dict[Any, Sequence[tuple[int, int]]] = {}
            unknown: list[bytes] = []
            for start, end in found:
                entry = plan.slice(buffer, ((start, end),), depth)
                if entry is None:
                    _check_valid(plan.pb, buffer, ((start, end),))
                    unknown += (self._tag, varint(end - start), buffer[start:end])
                else:
                    _check_valid(field.plan.pb, buffer, values.get(entry.key, ()))
                    values[entry.key] = entry.value
            return {key: field.slice(buffer, value, depth + 1)[0] for key, value in values.items()}, b"".join(unknown)
        if self._is_repeated:
            return [plan.slice(buffer, (each,), depth) for each in found], b""
        # Occurrences of one message are parts of it, so protobuf's definition: as if they were one behind the other.
        return plan.slice(buffer, found, depth) if found or self._is_always_there else None, b""


@dataclass(slots=True)
class _Entry:
    """An entry of a map, which on the wire is a repeated message of key and value."""

    key: Any
    value: Any
    _unknown: bytes = b""


class _Frame:
    """A message inside of another: the place of its tag and length among the parts."""

    __slots__ = ("outer", "place", "size", "tag")

    def __init__(self, tag: bytes, place: int, outer: _Frame | None) -> None:
        self.tag = tag
        self.place = place
        self.outer = outer
        self.size = 0


class _Parts:
    """A message on its way out: what will be joined, and what depends on where it comes to lie."""

    __slots__ = ("_gaps", "_inner", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self._inner: _Frame | None = None
        self._gaps: dict[int, _Frame | None] = {}

    def begin(self, tag: bytes) -> _Frame:
        """The parts added until `end` are the content of a field, whose size must be set by then."""
        frame = self._inner = _Frame(tag, len(self.parts), self._inner)
        self.parts.append(b"")
        return frame

    def end(self, frame: _Frame) -> int:
        """How long the field is."""
        length = self.parts[frame.place] = frame.tag + varint(frame.size)
        self._inner = frame.outer
        return len(length) + frame.size

    def align_next(self) -> None:
        """Leave a place for padding, so that what follows the next part is aligned."""
        self._gaps[len(self.parts)] = self._inner
        self.parts.append(b"")

    def join(self) -> bytes:
        """The one copy of the tensors on their way out."""
        self.settle()
        return b"".join(self.parts)

    def settle(self) -> None:
        """Padding can make a length before it longer by a byte, which moves what follows, so the places are gone through
        again then. Paddings only grow.
        """
        for _ in range(4):
            if not self._pad():
                break

    def _pad(self) -> bool:
        """Whether a length before a padding took another byte."""
        offset, has_moved, parts = 0, False, self.parts
        for place in range(len(parts)) if self._gaps else ():
            if place in self._gaps:
                size = len(parts[place])
                missing = -(offset + size + len(parts[place + 1])) % ALIGNMENT
                parts[place] = _padding(size + missing)
                frame = self._gaps[place]
                while frame is not None:
                    frame.size += len(parts[place]) - size
                    length = frame.tag + varint(frame.size)
                    has_moved = has_moved or len(length) != len(parts[frame.place])
                    parts[frame.place] = length
                    frame = frame.outer
            offset += len(parts[place])
        return has_moved


def _joined(plan: _MessagePlan | _TensorPlan, value: Any) -> bytes:
    out = _Parts()
    plan.gather(value, out, 0)
    return out.join()


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


def _is_entry(descriptor: Descriptor | None) -> bool:
    return descriptor is not None and bool(descriptor.GetOptions().map_entry)


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


def _unknown_bytes(fields: Any) -> bytes:
    """The encoding of fields that this side does not know."""
    return b"".join(map(_unknown_field, fields))


def _unknown_field(field: Any) -> bytes:
    number, kind, data = field.field_number, field.wire_type, field.data
    tag = varint(number << 3 | kind)
    if kind == LENGTH:
        return tag + varint(len(data)) + cast("bytes", data)
    if kind == GROUP:
        return tag + _unknown_bytes(data) + varint(number << 3 | kind + 1)
    return tag + (varint(data) if kind == 0 else struct.pack("<Q" if kind == 1 else "<I", data))


def _set_line(field: FieldDescriptor, attribute: str, write: str, name: str) -> tuple[str, Any]:
    """The line that sets a field of protobuf's `pb` from `message`, and what it calls `write`."""
    theirs, ours = _theirs(field), f"message.{attribute}"
    item = _item(field)
    fill = None if item.message_type is None else _filler(item.message_type, name)
    if _is_map(field):
        line = f"{theirs}.update({ours})" if fill is None else f"{write}({theirs}, {ours}, depth)"
        return f"if {ours}: {line}", fill and _map_writer(fill)
    if field.is_repeated:
        line = f"{theirs}.extend({ours})" if fill is None else f"{write}({theirs}, {ours}, depth)"
        return f"if {ours}: {line}", fill and _list_writer(fill)
    if fill is not None:
        return f"if (value := {ours}) is not None: {write}({theirs}, value, depth)", fill
    is_keyword = keyword.iskeyword(field.name)
    line = f"setattr(pb, {field.name!r}, {ours})" if is_keyword else f"{theirs} = {ours}"
    return (f"if {ours} is not None: {line}" if _has_presence(field) else line), None


def _read_line(field: FieldDescriptor, attribute: str, convert: str) -> tuple[str, Any]:
    """The line that sets a field of `message` from protobuf's `pb`, and what it calls `convert`."""
    theirs, item = _theirs(field), _item(field)
    converter = _converter(item)
    is_enum = isinstance(converter, dict)

    def converted(text: str) -> str:
        if converter is None:
            return text
        return f"{convert}[{text}]" if is_enum else f"{convert}({text})"

    if _is_map(field):
        value = f"{{k: {converted('c[k]')} for k in c}} if (c := {theirs}) else {{}}"
    elif field.is_repeated and converter is None:
        value = f"c[:] if (c := {theirs}) else []"
    elif field.is_repeated:
        value = f"[{converted('i')} for i in c] if (c := {theirs}) else []"
    elif _has_presence(field):
        value = f"{converted(theirs)} if has(pb, {field.name!r}) else None"
    else:
        value = converted(theirs)
    return f"message.{attribute} = {value}", converter


def _theirs(field: FieldDescriptor) -> str:
    return f"getattr(pb, {field.name!r})" if keyword.iskeyword(field.name) else f"pb.{field.name}"


def _item(field: FieldDescriptor) -> FieldDescriptor:
    """The field itself; of a map the field that its values are."""
    return _message_type(field).fields_by_name["value"] if _is_map(field) else field


def _has_presence(field: FieldDescriptor) -> bool:
    """In an entry of a map both fields are always there."""
    return field.has_presence and not _is_entry(field.containing_type)


def _list_writer(fill: Callable[[Any, Any, int], None]) -> Callable[[Any, Any, int], None]:
    def write(container: Any, items: Iterable[Any], depth: int) -> None:
        for item in items:
            fill(container.add(), item, depth)

    return write


def _map_writer(fill: Callable[[Any, Any, int], None]) -> Callable[[Any, Any, int], None]:
    def write(container: Any, items: dict[Any, Any], depth: int) -> None:
        for key, item in items.items():
            fill(container[key], item, depth + 1)  # an entry is a level of its own

    return write


def _filler(descriptor: Descriptor, name: str) -> Callable[[Any, Any, int], None]:
    """How to copy a message of that type into protobuf's, which is `depth` levels below the outermost."""
    cls = _class_of(descriptor)
    theirs: Any = message_factory.GetMessageClass(descriptor)

    def fill(pb: Any, value: Any, depth: int) -> None:
        if type(value) is not cls:
            raise EncodeError(f"{name}: expected {cls.__name__}, got {type(value).__name__}")
        theirs.SetInParent(pb)
        if cls is theirs:
            theirs.CopyFrom(pb, value)
            return
        try:
            cast("_MessagePlan", _plan(cls)).fill(pb, value, depth + 1)
        except EncodeError as error:
            raise EncodeError(f"{name}: {error}") from None

    return fill


def _converter(field: FieldDescriptor) -> Any:
    """How one item of the field comes from protobuf, by call or, where it is an enum, by key; None where it stays the same."""
    if field.enum_type is not None:
        enum = class_of(field.enum_type.full_name)
        return None if enum is None else _Members(cast("type[Enum]", enum))
    if field.type == field.TYPE_STRING:
        return None if _is_checked(field) else _text
    if field.message_type is None or issubclass(cls := _class_of(field.message_type), ProtobufMessage):
        return None
    return lambda pb: cast("_MessagePlan", _plan(cls)).from_pb(pb)


class _Members(dict[int, Any]):
    """The members of an enum by number."""

    def __init__(self, enum: type[Enum]) -> None:
        super().__init__((int(member), member) for member in enum)
        self.enum = enum

    def __missing__(self, number: int) -> Any:
        """A number that the .proto does not name. Those of a byte are kept, so that the many are not one object each."""
        member = self.enum(number)
        if 0 <= number < 128:
            self[number] = member
        return member


def _is_checked(field: FieldDescriptor) -> bool:
    """Whether protobuf itself refuses text that is no UTF-8, as it does not for proto2."""
    owner = cast("Descriptor", field.containing_type)
    try:
        message_factory.GetMessageClass(owner).FromString(varint(field.number << 3 | LENGTH) + b"\1\xff")
    except ProtobufDecodeError:
        return True
    return False


def _text(value: str | bytes) -> str:
    """protobuf hands out bytes where they are no UTF-8."""
    if isinstance(value, bytes):
        raise DecodeError(f"a string that is no UTF-8: {value!r:.80}")
    return value


def _exclusive_attributes(fields: Iterable[_Field]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    oneofs: dict[str, list[str]] = {}
    for field in fields:
        if field.oneof is not None:
            oneofs.setdefault(field.oneof, []).append(field.attribute)
    return tuple((name, tuple(attributes)) for name, attributes in oneofs.items())


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of a oneof that can hold a tensor."""

    rivals: tuple[int, ...]
    """The members that it displaces when it comes later."""
    numbers: frozenset[int] | None
    """Of a closed enum: those that it names. Others are unknown fields."""


def _members(descriptor: Descriptor, gathered: Iterable[int]) -> dict[tuple[int, int], _Member]:
    """By field number and wire type; with another wire type it is an unknown field."""
    found: dict[tuple[int, int], _Member] = {}
    for oneof in descriptor.oneofs:
        numbers = [f.number for f in oneof.fields]
        if set(gathered) & set(numbers):
            for f in oneof.fields:
                rivals = tuple(number for number in numbers if number != f.number)
                found[f.number, _wire_type(f)] = _Member(rivals, _closed(f.enum_type))
    return found


def _closed(enum: EnumDescriptor | None) -> frozenset[int] | None:
    return frozenset(enum.values_by_number) if enum is not None and enum.is_closed else None


def _number(content: bytes) -> int:
    """Of an enum, as protobuf reads it: the lower 32 bits of a varint."""
    value = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(content)) & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


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


def _check_valid(theirs: Any, buffer: bytes, ranges: Iterable[tuple[int, int]]) -> None:
    """What something later displaces must be valid all the same."""
    for start, end in ranges:
        theirs.FromString(buffer[start:end])


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
