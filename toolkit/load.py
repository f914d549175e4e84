"""From `module:Class` in a graph file to a service class, with one clear sentence for each way that it can fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from inspect import Parameter, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from pathlib import Path
from site import getsitepackages
from traceback import walk_tb
from typing import Any

from toolkit.batching import batched_methods
from toolkit.client import Client
from toolkit.errors import StartError
from toolkit.method import Method
from toolkit.service import Service, dependencies


def load_service(reference: str) -> type[Service]:
    """Import a service class; the working directory counts as an import root. Raises StartError."""
    module_name, _, class_name = reference.partition(":")
    if not module_name or not class_name.isidentifier():
        raise StartError(f"class {reference!r} is not of the form package.module:Class")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise StartError(_missing_module(module_name, error)) from None
    except (Exception, SystemExit) as error:
        raise StartError(f"importing {module_name} failed: {told(error)}") from error
    cls = getattr(module, class_name, None)
    if cls is None:
        raise StartError(f"module {module_name} has no class {class_name}; it has {_services_in(module)}")
    if not (isinstance(cls, type) and issubclass(cls, Service)):
        raise StartError(f"{reference} is not a service: let it subclass a generated XBase")
    if not hasattr(cls, "__contract__"):
        raise StartError(f"{reference} has no contract: let it subclass a generated XBase, not Service itself")
    batched = batched_methods(cls)
    for name in batched:
        _check_batched(reference, cls, name)
    for method in cls.__contract__.methods:
        if method.attribute not in batched:
            _check_shape(reference, cls, method)
    for name, client in dependencies(cls).items():
        if not (isinstance(client, type) and issubclass(client, Client) and hasattr(client, "__contract__")):
            what = getattr(client, "__name__", repr(client))
            raise StartError(f"handle {name} of {reference}: depends() takes a generated XClient, not {what}")
    return cls


def _check_batched(reference: str, service: type[Service], name: str) -> None:
    found = next((method for method in service.__contract__.methods if method.attribute == name), None)
    if found is None:
        raise StartError(f"{name} of {reference} is batched, and is no method of {service.__contract__.name}")
    if found.client_streaming or found.server_streaming:
        raise StartError(
            f"{name} of {reference} is batched and has a stream: a batch takes one message for one message"
        )


def _check_shape(reference: str, service: type[Service], method: Method[Any, Any]) -> None:
    """A handler that no call could get an answer from; what a plain function returns is seen when it is called."""
    name = method.attribute
    handler = getattr(service, name)
    if not method.server_streaming and (isgeneratorfunction(handler) or isasyncgenfunction(handler)):
        raise StartError(
            f"{name} of {reference} yields, and answers with one message: return it, or write `stream` into the .proto"
        )
    if method.server_streaming and isgeneratorfunction(handler):
        raise StartError(
            f"{name} of {reference} is a plain generator: make it `async def`, or hand one to toolkit.blocking.from_blocking"
        )
    if method.server_streaming and iscoroutinefunction(handler):
        raise StartError(
            f"{name} of {reference} answers with a stream, and never yields: "
            "yield each reply, or leave out `async` and return a stream"
        )


def constructor_arguments(service: type[Service], args: Mapping[str, Any], device: str) -> dict[str, Any]:
    """The keywords for a service's constructor: its `args`, and `device` if it takes one. Raises StartError."""
    parameters = signature(service).parameters
    taken = {
        name for name, p in parameters.items() if p.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    }
    takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [] if takes_any else sorted(set(args) - taken)
    if unknown:
        raise StartError(
            f"{service.__name__} takes no argument {', '.join(unknown)}; it takes {', '.join(sorted(taken)) or 'none'}"
        )
    found = {"device": device, **args} if "device" in taken else dict(args)
    missing = sorted(n for n in taken - set(found) if parameters[n].default is Parameter.empty)
    if missing:
        raise StartError(f"{service.__name__} needs {', '.join(missing)}: give it under `args`, or with --args")
    return found


def project_files(behind: BaseException | None = None) -> list[str]:
    """The files of the working directory that are imported by now, and those that an error comes from; nothing of what is
    installed.
    """
    own = Path.cwd().resolve()
    installed = [Path(each).resolve() for each in {sys.prefix, *getsitepackages()}]
    imported = [path for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))]
    files = {Path(path).resolve() for path in (*imported, *_origins(behind))}
    return sorted(
        str(path) for path in files if path.is_relative_to(own) and not any(map(path.is_relative_to, installed))
    )


def _origins(error: BaseException | None) -> Iterator[str]:
    """The files that an error comes from, and those behind it: a module that fails is none of those imported."""
    while error is not None:
        found = [frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__)]
        found += [error.filename] if isinstance(error, SyntaxError) and error.filename else []
        yield from (path for path in found if Path(path).is_file())  # `<frozen importlib>` is none
        error = error.__cause__ or error.__context__


def told(error: BaseException) -> str:
    """An exception in one line; the log has the rest."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _missing_module(wanted: str, error: ModuleNotFoundError) -> str:
    if error.name is not None and (wanted == error.name or wanted.startswith(error.name + ".")):
        return f"there is no module {wanted} (looked from the working directory); check `class`, or run from the project's root"
    missing = str(error.name)
    if missing.endswith("_toolkit"):
        cure = "run `toolkit generate`"
    elif "." in missing:
        cure = "check the name in that import, or run `toolkit generate`"
    else:
        cure = f"pip install what provides {missing}"
    return f"importing {wanted} failed: it needs the module {missing}, which is not there; {cure}"


def _services_in(module: Any) -> str:
    own = [
        n
        for n, v in vars(module).items()
        if isinstance(v, type) and issubclass(v, Service) and v.__module__ == module.__name__
    ]
    return ", ".join(sorted(own)) or "no service class"
