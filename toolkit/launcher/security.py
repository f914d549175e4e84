"""What a graph file says about TLS and tokens, and what is wrong with it before any file is opened. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from ipaddress import ip_address
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, with_config

from toolkit.spec import is_exposed

LOOPBACK = "127.0.0.1"
PLACE = "{deployment}"
"""Stands for the deployment's name in a path, so that one line at the top of the file serves them all."""

_strict = with_config(ConfigDict(strict=True, extra="forbid"))


def _is_path(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("must be the path of a file, relative to the graph file")
    return text


def _is_host(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(
            f"must be an IP address of this machine, or 0.0.0.0 or :: for all of them, not {text[:48]!r}"
        ) from None


FilePath = Annotated[str, AfterValidator(_is_path)]
Host = Annotated[str, AfterValidator(_is_host)]


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """At the top of the file for every deployment, in a deployment for what differs there."""

    cert: FilePath | None = None
    """PEM: what the deployment shows its callers, and those that it calls."""
    key: FilePath | None = None
    """PEM: the certificate's key, which only its owner may read."""
    ca: FilePath | None = None
    """PEM: whom all of them trust. None: the public authorities."""
    mutual: bool | None = None
    """Callers show a certificate too, and must be the deployments that call this one, or in `allow`."""
    allow: tuple[str, ...] | None = None
    """Who else may call: an identity of this graph (`client`), or a URI or a DNS name in the caller's certificate."""
    server_name: str | None = None
    """The DNS name in its certificate. None: `deployment.graph`, as `toolkit certs` writes it."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteTls:
    """How a deployment that runs elsewhere is called."""

    ca: FilePath | None = None
    """PEM: who signed its certificate. None: one of the public authorities."""
    server_name: str | None = None
    """The DNS name in its certificate. None: the host in `url`."""
    mutual: bool = False
    """It asks for a certificate: its callers show their own."""


@_strict
@dataclass(frozen=True, kw_only=True, slots=True)
class Auth:
    """Callers send a token."""

    token_file: FilePath
    """One token a line: all are accepted, the first is sent. Read again when it changes."""


def merge(everywhere: Tls | None, here: Tls | None) -> Tls | None:
    """What a deployment says, and where it says nothing what the top of the file says."""
    if everywhere is None or here is None:
        return here or everywhere
    said = {each.name: getattr(here, each.name) for each in fields(Tls)}
    return Tls(**{name: getattr(everywhere, name) if value is None else value for name, value in said.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposure:
    """Where a deployment listens, and what it asks of those that call it there."""

    host: str | None
    port: int | None
    tls: Tls | None
    auth: Auth | None
    insecure: bool
    is_entry: bool


def find_faults(each: Exposure) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is wrong with one deployment: the key, and a sentence with the cure."""
    yield from () if each.tls is None else _find_tls_faults(each.tls, each.is_entry)
    if each.host is None:
        return
    if each.port is None:
        yield ("host",), "needs a port beside it"
    elif is_exposed(join(each.host, each.port)) and each.tls is None and each.auth is None and not each.insecure:
        yield ("host",), f"the network can reach {each.host}, and callers need neither TLS nor a token; {_CURE}"


_CURE = "add tls (`toolkit certs` makes certificates) or auth, or say insecure: true"


def _find_tls_faults(tls: Tls, is_entry: bool) -> Iterator[tuple[tuple[str, ...], str]]:
    if tls.cert is None or tls.key is None:
        yield ("tls",), "needs both cert and key, what a deployment shows its callers; `toolkit certs` makes them"
    if tls.mutual and tls.ca is None:
        yield ("tls", "mutual"), "needs ca, the authority that signs the callers' certificates"
    if tls.mutual and is_entry and not tls.allow:
        yield ("tls", "mutual"), "lets nobody call the entry; say who may, in the entry: tls: {allow: [client]}"
    if tls.allow and not tls.mutual:
        yield ("tls", "allow"), "needs mutual: true; without it callers show no certificate"


def join(host: str, port: int) -> str:
    """An address as gRPC writes it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
