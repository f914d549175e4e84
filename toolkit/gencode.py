"""All that generated code may name. Frozen: what breaks it becomes a new version beside this one, never a change here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from toolkit.client import Client, Stream
from toolkit.context import Context, Metadata
from toolkit.message import Enum, Message
from toolkit.message import register_enum as enum
from toolkit.message import register_file as file
from toolkit.message import register_message as message
from toolkit.method import Contract, Method
from toolkit.service import Service, unimplemented
from toolkit.tensor import DType, Tensor

VERSION: Final = 1
"""The newest generated code that this runtime understands; it understands every older one too."""

if TYPE_CHECKING:
    from typing_extensions import deprecated
else:
    F = TypeVar("F", bound=Callable[..., Any])

    def deprecated(reason: str) -> Callable[[F], F]:
        """Warn whoever calls the decorated method (`warnings.deprecated` of Python 3.13)."""
        return lambda function: _warning(function, reason)


def _warning(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        warnings.warn(reason, DeprecationWarning, stacklevel=2)
        return function(*args, **options)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    return call


def require(version: int) -> None:
    """The handshake: generated code says which version of this module it was made for."""
    if version > VERSION:
        raise ImportError(
            f"this module was generated for version {version} of toolkit.gencode, and the installed toolkit has "
            f"{VERSION}: upgrade it with `pip install -U grpc-model-toolkit`, or run `toolkit generate` again"
        )


__all__ = [
    "Client",
    "Context",
    "Contract",
    "DType",
    "Enum",
    "Message",
    "Metadata",
    "Method",
    "Service",
    "Stream",
    "Tensor",
    "deprecated",
    "enum",
    "file",
    "message",
    "require",
    "unimplemented",
]
