"""`Service`: the base of generated skeletons. `depends()`: how a service names the handles that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ClassVar, Final, Generic, Self, TypeVar, cast, overload

from toolkit.client import Client
from toolkit.errors import Code, ServiceError, ToolkitError
from toolkit.method import Contract, Method

C = TypeVar("C", bound=Client)


class Service:
    """Subclass a generated `XBase`, not this.

    The constructor gets the deployment's `args` as keywords, and `device` if it takes one; it runs beside the event
    loop, so it may block while a model loads, and handles are in place already. What must be awaited goes into
    `__aenter__`, and what must be released into `__aexit__`.
    """

    __contract__: ClassVar[Contract]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Dependency(Generic[C]):
    """What `depends()` leaves in the class: the name of a handle and the client that it must be."""

    name: str = ""

    def __init__(self, client: type[C]) -> None:
        self.client = client

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Dependency[C]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> C: ...
    def __get__(self, instance: object | None, owner: type) -> Dependency[C] | C:
        if instance is None:
            return self
        raise ToolkitError(
            f"{owner.__name__}.{self.name} is not connected. `toolkit up` connects it; "
            f"a test sets it: service.{self.name} = client"
        )


def depends(client: type[C]) -> C:
    """A handle on another deployment, as a class attribute: `classifier = depends(ScoringClient)`.

    It reaches the deployment of the same name, or the one that `bind` names in the graph file. This is all that declares
    an edge of the graph.
    """
    return cast("C", Dependency(client))


def dependencies(service: type[Service]) -> dict[str, type[Client]]:
    """The handles that a class names: attribute → client class."""
    found: dict[str, type[Client]] = {}
    for cls in reversed(service.__mro__):
        found |= {name: value.client for name, value in vars(cls).items() if isinstance(value, Dependency)}
    return found


def construct(service: type[Service], handles: Mapping[str, Client], args: Mapping[str, Any]) -> Service:
    """An instance whose handles are in place before its constructor runs."""
    instance = service.__new__(service)
    vars(instance).update(handles)
    instance.__init__(**args)  # type: ignore[misc]  # the one place where a constructor runs on a prepared instance
    return instance


def unimplemented(method: Method[Any, Any]) -> ServiceError:
    """The error of a method that the service does not override."""
    return ServiceError(Code.UNIMPLEMENTED, f"{method.service} does not implement {method.name}")


Reporter = Callable[[str, float | None, float | None], None]
reporter: Final[ContextVar[Reporter | None]] = ContextVar("toolkit-progress", default=None)


def progress(phase: str, done: float | None = None, total: float | None = None) -> None:
    """Say how far a start has come, from a constructor or `__aenter__`: `progress("read weights", 3, 10)`.

    `toolkit up` shows it live. `done` and `total` are in any one unit; leave them out where they are unknown.
    """
    report = reporter.get()
    if report is not None:
        report(phase, done, total)
