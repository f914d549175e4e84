"""Messages are dataclasses, enums are open: what generated code builds on, and which class stands for which proto type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from enum import IntEnum
from typing import Any, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.message import Message as ProtobufMessage

_classes: dict[str, type] = {}


class Message:
    """Base of generated messages: plain mutable dataclasses, equal when their fields are.

    It has no public attribute, so that no field of a .proto can collide with one.
    """

    __slots__ = ("_unknown",)
    _unknown: bytes
    """Fields that this side's .proto does not have, as received; sent on when the message is encoded again."""

    def __post_init__(self) -> None:
        self._unknown = b""


class Enum(IntEnum):
    """Base of generated enums. They are open: a number that this side's .proto does not name is kept as it is."""

    @classmethod
    def _missing_(cls, value: object) -> Enum | None:
        if not isinstance(value, int) or not -(1 << 31) <= value < 1 << 31:
            return None
        member = int.__new__(cls, value)
        member._name_ = str(value)
        member._value_ = value
        return member


MessageType = TypeVar("MessageType", bound=type)


def register_file(serialized: bytes) -> None:
    """Make a .proto's types known to protobuf. Raises ImportError when another .proto of the same path is loaded."""
    try:
        descriptor_pool.Default().AddSerializedFile(serialized)
    except TypeError as error:
        if "duplicate file name" not in str(error):
            raise ImportError(f"protobuf refuses this .proto: {error}") from None
        raise ImportError(
            f"two different .proto files share one path: {error}. "
            "Give each a path of its own under the include root, for example <project>/<name>/v1/<name>.proto"
        ) from None


def register_message(name: str, renamed: Mapping[str, str] | None = None) -> Callable[[MessageType], MessageType]:
    """Class decorator: this dataclass stands for the message `name`.

    `renamed` gives the attribute of each field whose own name Python cannot take.
    """

    def register(cls: MessageType) -> MessageType:
        setattr(cls, "__proto__", name)  # noqa: B010 - a type checker knows no such attribute on `type`
        setattr(cls, "__renamed__", dict(renamed or {}))  # noqa: B010 - likewise
        _classes[name] = cls
        return cls

    return register


def register_enum(name: str) -> Callable[[MessageType], MessageType]:
    """Class decorator: this enum stands for the enum `name`."""

    def register(cls: MessageType) -> MessageType:
        _classes[name] = cls
        return cls

    return register


def class_of(name: str) -> type[Any] | None:
    """The class that stands for a message or enum; None when no generated module has registered one."""
    return _classes.get(name)


_SHARED = frozenset({int, float, str, bytes, bool, type(None)})


def copy_message(message: Any) -> Any:
    """A copy whose fields, lists, maps and nested messages can be changed apart from the original's. Tensors and bytes,
    which nobody can change, are shared.
    """
    if type(message) in _SHARED:
        return message
    if isinstance(message, Message):
        twin = object.__new__(type(message))
        for name in type(message).__slots__:
            setattr(twin, name, copy_message(getattr(message, name)))
        twin._unknown = message._unknown
        return twin
    if isinstance(message, list):
        return [copy_message(item) for item in message]
    if isinstance(message, dict):
        return {key: copy_message(item) for key, item in message.items()}
    return copy(message) if isinstance(message, ProtobufMessage) else message
