"""Who shows what to whom: the TLS and token files of a graph → what each replica asks of its callers, and brings to those
that it calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from toolkit.credentials import check_private, watch_tokens
from toolkit.errors import GraphError
from toolkit.handshake import check_authority, check_pair
from toolkit.launcher.edges import Edges
from toolkit.launcher.manifest import Graph
from toolkit.launcher.security import LOOPBACK, PLACE, Auth, Tls, join
from toolkit.spec import Incoming, Outgoing


@dataclass(frozen=True, kw_only=True, slots=True)
class Trust:
    """One deployment's side of it."""

    incoming: Incoming
    outgoing: Mapping[str, Outgoing]
    """Deployment → how it is called."""


def needs_edges(graph: Graph) -> bool:
    """Whether someone accepts only those that call it by the graph: then the edges must be known before the start."""
    return any(each.tls is not None and each.tls.mutual for each in graph.services.values())


def plan_trust(graph: Graph, edges: Edges, *, tries_files: bool = True) -> dict[str, Trust]:
    """Each deployment's side, its files tried. `edges` may be empty where `needs_edges` says so. Raises GraphError."""
    if tries_files:
        _try_files(graph, edges)
    return {
        name: Trust(
            incoming=_incoming(graph, edges, name),
            outgoing={
                other: said
                for other in (*graph.services, *graph.remotes)
                if (said := outgoing(graph, other, name)) != Outgoing()
            },
        )
        for name in graph.services
    }


def _try_files(graph: Graph, edges: Edges) -> None:
    problems = [problem for name in graph.services for problem in _find_problems(graph, edges, name)]
    problems += [problem for name in graph.remotes for problem in _find_problems_elsewhere(graph, name)]
    if problems:
        raise GraphError("\n".join(dict.fromkeys(problems)))


def identities(graph: Graph, name: str) -> tuple[str, str]:
    """What a certificate must hold to be that of a deployment, or of a client, of this graph: either is enough."""
    return f"spiffe://{graph.name}/{name}", f"{name}.{graph.name}"


def outgoing(graph: Graph, callee: str, caller: str | None = None) -> Outgoing:
    """How `caller` reaches `callee`; None is someone outside, whose own certificate is not known here."""
    if callee in graph.remotes:
        return _outgoing_elsewhere(graph, callee, caller)
    tls, auth = graph.services[callee].tls, graph.services[callee].auth
    token_file = _path(graph, callee, auth.token_file) if auth else ""
    if tls is None:
        return Outgoing(token_file=token_file)
    cert, key = _pair(graph, caller) if tls.mutual and caller is not None else ("", "")
    return Outgoing(
        tls=True,
        ca=_path(graph, callee, tls.ca),
        server_name=_server_name(graph, callee, tls),
        cert=cert,
        key=key,
        token_file=token_file,
    )


def _outgoing_elsewhere(graph: Graph, callee: str, caller: str | None) -> Outgoing:
    remote = graph.remotes[callee]
    tls = remote.tls
    cert, key = _pair(graph, caller) if tls is not None and tls.mutual and caller is not None else ("", "")
    return Outgoing(
        tls=tls is not None,
        ca=_path(graph, callee, tls.ca) if tls else "",
        server_name=(tls.server_name or "") if tls else "",
        cert=cert,
        key=key,
        token_file=_path(graph, callee, remote.auth.token_file) if remote.auth else "",
        insecure=remote.insecure,
        foreign=True,
    )


def entry_address(graph: Graph) -> str:
    """Where someone on this machine calls the entry."""
    host = graph.host(graph.entry)
    port = graph.port(graph.entry)
    assert port is not None  # an entry has one
    return join({"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host), port)


def _incoming(graph: Graph, edges: Edges, name: str) -> Incoming:
    tls, auth = graph.services[name].tls, graph.services[name].auth
    token_file = _path(graph, name, auth.token_file) if auth else ""
    if tls is None:
        return Incoming(token_file=token_file)
    cert, key = _pair(graph, name)
    return Incoming(
        cert=cert,
        key=key,
        caller_ca=_path(graph, name, tls.ca) if tls.mutual else "",
        callers=tuple(_callers(graph, edges, name, tls)) if tls.mutual else None,
        token_file=token_file,
    )


def _callers(graph: Graph, edges: Edges, name: str, tls: Tls) -> Iterator[str]:
    """The identities that may call: those of its callers, and those that the file allows."""
    for caller, callees in edges.items():
        if name in callees:
            yield from identities(graph, caller)
    for allowed in tls.allow or ():
        yield from [allowed] if "." in allowed or "://" in allowed else identities(graph, allowed)


def _server_name(graph: Graph, name: str, tls: Tls) -> str:
    return tls.server_name or identities(graph, name)[1]


def _pair(graph: Graph, name: str) -> tuple[str, str]:
    tls = graph.services[name].tls
    return ("", "") if tls is None else (_path(graph, name, tls.cert), _path(graph, name, tls.key))


def _path(graph: Graph, name: str, path: str | None) -> str:
    return str(graph.path.parent.absolute() / path.replace(PLACE, name)) if path else ""


def _find_problems(graph: Graph, edges: Edges, name: str) -> Iterator[str]:
    """`file:line: key: what and the cure`, for files that do not do what they are for."""
    tls, auth = graph.services[name].tls, graph.services[name].auth
    if auth is not None:
        yield from _try_tokens(graph, name, auth)
    if tls is not None:
        cert, key = _pair(graph, name)
        try:
            check_private(key)
            check_pair(cert, key, ca=_path(graph, name, tls.ca), name=_server_name(graph, name, tls))
        except ValueError as error:
            yield f"{_where(graph, name, 'tls', 'cert')}: {error}"
            return
    for callee in edges.get(name, ()):
        theirs = graph.services[callee].tls
        if theirs is not None and theirs.mutual:
            yield from _try_identity(graph, edges, name, callee, theirs)


def _find_problems_elsewhere(graph: Graph, name: str) -> Iterator[str]:
    remote = graph.remotes[name]
    if remote.auth is not None:
        yield from _try_tokens(graph, name, remote.auth)
    if remote.tls is not None and remote.tls.ca is not None:
        try:
            check_authority(_path(graph, name, remote.tls.ca))
        except ValueError as error:
            yield f"{_where(graph, name, 'tls', 'ca')}: {error}"


def _try_identity(graph: Graph, edges: Edges, name: str, callee: str, theirs: Tls) -> Iterator[str]:
    where = _where(graph, name, "tls", "cert")
    cert, key = _pair(graph, name)
    if not cert:
        yield f"{where}: {name!r} calls {callee!r}, which asks for a certificate; add tls with cert and key"
        return
    try:
        shown = check_pair(cert, key, ca=_path(graph, callee, theirs.ca), caller=True)
    except ValueError as error:
        yield f"{where}: {error}, and {callee!r} asks for that"
        return
    if not set(shown) & set(_callers(graph, edges, callee, theirs)):
        yield (
            f"{where}: {cert} does not say that it is {name!r}, and {callee!r} asks for that; "
            f"it must hold {' or '.join(identities(graph, name))}, as `toolkit certs` writes it"
        )


def _try_tokens(graph: Graph, name: str, auth: Auth) -> Iterator[str]:
    try:
        watch_tokens(_path(graph, name, auth.token_file))
    except ValueError as error:
        yield f"{_where(graph, name, 'auth', 'token_file')}: {error}"


def _where(graph: Graph, name: str, *key: str) -> str:
    """Where the file says it: in the deployment, or at the top."""
    return graph.where(*graph.said_at(name, *key))
