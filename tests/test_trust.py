"""TLS and tokens of a graph file: who asks what of whom, and what is wrong before anything starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.certificates import make
from toolkit.errors import GraphError
from toolkit.launcher.manifest import Graph, load_graph
from toolkit.launcher.security import Tls, merge
from toolkit.launcher.trust import entry_address, needs_edges, outgoing, plan_trust
from toolkit.spec import Incoming, Outgoing

EDGES = {"entry": ("leaf",), "leaf": ()}
TOP = """\
tls:
  ca: certs/ca.crt
  cert: "certs/{deployment}.crt"
  key: "certs/{deployment}.key"
  mutual: true
auth: {token_file: certs/token}
"""
SERVICES = """\
services:
  leaf: {class: "m:C"}
  entry:
    class: "m:C"
    tls: {allow: [client, "spiffe://other/dashboard", ops.example.com]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("certs"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The project's folder, its certificates in it."""
    shutil.copytree(made, tmp_path / "certs")
    return tmp_path


def load(folder: Path, text: str) -> Graph:
    (folder / "graph.yaml").write_text("name: test\nentry: entry\n" + text)
    return load_graph(folder / "graph.yaml")


def problems(folder: Path, text: str) -> list[str]:
    """What loading, or planning, says is wrong; the folder left out."""

    def plan() -> None:
        graph = load(folder, text)
        plan_trust(graph, EDGES if "leaf" in graph.services else {})

    with pytest.raises(GraphError) as caught:
        plan()
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def one(entry: str, top: str = "") -> str:
    """`entry` stands on the fourth line of the file where there is no `top`."""
    return f"{top}services:\n  entry: {{class: 'm:C', {entry}}}\n"


def test_a_deployment_is_called_by_those_that_name_it_and_by_those_that_the_file_allows(folder: Path) -> None:
    trust = plan_trust(load(folder, TOP + SERVICES), EDGES)
    certs = folder / "certs"
    assert trust["leaf"].incoming == Incoming(
        cert=f"{certs}/leaf.crt",
        key=f"{certs}/leaf.key",
        caller_ca=f"{certs}/ca.crt",
        callers=("spiffe://test/entry", "entry.test"),
        token_file=f"{certs}/token",
    )
    allowed = ("spiffe://test/client", "client.test", "spiffe://other/dashboard", "ops.example.com")
    assert trust["entry"].incoming.callers == allowed
    assert trust["entry"].outgoing["leaf"] == Outgoing(
        tls=True,
        ca=f"{certs}/ca.crt",
        server_name="leaf.test",
        cert=f"{certs}/entry.crt",
        key=f"{certs}/entry.key",
        token_file=f"{certs}/token",
    )


def test_an_outsider_has_no_certificate_but_its_own(folder: Path) -> None:
    graph = load(folder, TOP + SERVICES)
    found = outgoing(graph, "entry")
    assert (found.tls, found.server_name, found.cert) == (True, "entry.test", "")


def test_a_graph_that_says_nothing_asks_for_nothing(folder: Path) -> None:
    graph = load(folder, 'services:\n  leaf: {class: "m:C"}\n  entry: {class: "m:C"}\n')
    trust = plan_trust(graph, {})
    assert {name: (each.incoming, dict(each.outgoing)) for name, each in trust.items()} == {
        "leaf": (Incoming(), {}),
        "entry": (Incoming(), {}),
    }
    assert not needs_edges(graph)


def test_tls_of_the_entry_alone_leaves_the_others_alone(folder: Path) -> None:
    tls = "tls: {cert: certs/entry.crt, key: certs/entry.key, ca: certs/ca.crt}"
    graph = load(folder, one(tls) + '  leaf: {class: "m:C"}\n')
    trust = plan_trust(graph, {})
    assert (trust["leaf"].incoming, trust["entry"].incoming.callers) == (Incoming(), None)
    assert list(trust["leaf"].outgoing) == ["entry"]
    assert not needs_edges(graph)


def test_a_deployment_says_what_differs_from_the_top() -> None:
    top = Tls(cert="a", key="b", mutual=True)
    assert merge(top, Tls(mutual=False, allow=("x",))) == Tls(cert="a", key="b", mutual=False, allow=("x",))
    assert merge(top, None) == merge(None, top) == top
    assert merge(None, None) is None


@pytest.mark.parametrize(
    ("host", "address"),
    [("", "127.0.0.1:50051"), ("0.0.0.0", "127.0.0.1:50051"), ("::", "[::1]:50051"), ("::1", "[::1]:50051")],
)
def test_the_entry_is_called_where_it_listens(folder: Path, host: str, address: str) -> None:
    graph = load(folder, one(f'host: "{host}", insecure: true' if host else "port: 50051"))
    assert entry_address(graph) == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            one("host: 0.0.0.0"),
            "graph.yaml:4: services.entry.host: the network can reach 0.0.0.0, and callers need neither TLS nor a token",
        ),
        (one("host: everywhere"), "graph.yaml:4: services.entry.host: must be an IP address of this machine"),
        (
            one("port: 1") + "  leaf: {class: 'm:C', host: 127.0.0.1}\n",
            "graph.yaml:5: services.leaf.host: needs a port beside it",
        ),
        (one("insecure: maybe"), 'graph.yaml:4: services.entry.insecure: must be true or false, not "maybe"'),
        (one("tls: {cert: a}"), "graph.yaml:4: services.entry.tls: needs both cert and key"),
        (one("tls: yes please"), 'graph.yaml:4: services.entry.tls: must be a mapping, not "yes please"'),
        (one("tls: {certt: a}"), "graph.yaml:4: services.entry.tls.certt: unknown key; did you mean 'cert'?"),
        (one("port: 1", "tlss: {}\n"), "graph.yaml:3: tlss: unknown key; did you mean 'tls'?"),
        (one("port: 1", "tls: {k: a}\n"), "graph.yaml:3: tls.k: unknown key; known here: cert, key, ca, mutual, allow"),
        (one("tls: {cert: ''}"), "graph.yaml:4: services.entry.tls.cert: must be the path of a file"),
        (one("port: 1", "tls: {cert: a, key: b, mutual: true}\n"), "graph.yaml:3: tls.mutual: needs ca, the authority"),
        (
            one("port: 1", "tls: {cert: a, key: b, ca: c, mutual: true}\n"),
            "graph.yaml:3: tls.mutual: lets nobody call the entry; say who may, in the entry: tls: {allow: [client]}",
        ),
        (
            one("tls: {cert: a, key: b, allow: [client]}"),
            "graph.yaml:4: services.entry.tls.allow: needs mutual: true; without it callers show no certificate",
        ),
        (one("tls: {cert: a, key: b, allow: client}"), "graph.yaml:4: services.entry.tls.allow: must be a list"),
        (one("auth: {}"), "graph.yaml:4: services.entry.auth.token_file: missing; add token_file"),
        (one("auth: {token: secret}"), "graph.yaml:4: services.entry.auth.token: unknown key"),
        (
            one("port: 1", "auth: {token_file: certs/gone}\n"),
            "graph.yaml:3: auth.token_file: certs/gone: no such file",
        ),
        (
            one("auth: {token_file: certs/ca.crt}"),
            "graph.yaml:4: services.entry.auth.token_file: certs/ca.crt: other users can read this secret; run: chmod 600",
        ),
        (
            one("tls: {cert: certs/old.crt, key: certs/old.key, server_name: old.test}"),
            "graph.yaml:4: services.entry.tls.cert: certs/old.crt: expired; renew it",
        ),
        (
            one("tls: {cert: certs/leaf.crt, key: certs/leaf.key}"),
            "graph.yaml:4: services.entry.tls.cert: certs/leaf.crt: not for the name entry.test",
        ),
        (
            one("tls: {cert: certs/foreign/entry.crt, key: certs/foreign/entry.key, ca: certs/ca.crt}"),
            "graph.yaml:4: services.entry.tls.cert: certs/foreign/entry.crt: not signed by certs/ca.crt",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place_and_the_cure(folder: Path, text: str, said: str) -> None:
    found = problems(folder, text)
    assert [line for line in found if line.startswith(said)], found


def test_a_caller_must_have_what_its_callee_asks_for(folder: Path) -> None:
    leaf = "services:\n  leaf: {class: 'm:C', tls: {ca: certs/ca.crt, cert: certs/leaf.crt, key: certs/leaf.key, mutual: true}}\n"
    own = "tls: {{ca: certs/ca.crt, cert: {0}.crt, key: {0}.key, server_name: leaf.test}}"
    for entry, said in {
        "port: 1": "graph.yaml:5: services.entry.tls.cert: 'entry' calls 'leaf', which asks for a certificate; add tls",
        own.format(
            "certs/leaf"
        ): "graph.yaml:5: services.entry.tls.cert: certs/leaf.crt does not say that it is 'entry'",
        "tls: {cert: certs/foreign/entry.crt, key: certs/foreign/entry.key}": (
            "graph.yaml:5: services.entry.tls.cert: certs/foreign/entry.crt: not signed by certs/ca.crt, and 'leaf' asks"
        ),
    }.items():
        (found,) = problems(folder, leaf + f"  entry: {{class: 'm:C', {entry}}}\n")
        assert found.startswith(said)
