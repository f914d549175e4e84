"""Certificates for tests, as `toolkit certs` makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from toolkit.project.certs import LOOPBACK, Wanted, make_certificates
from toolkit.spec import Incoming, Outgoing

GRAPH = "test"
DEPLOYMENTS = ("leaf", "entry")
CLIENTS = ("client", "stranger")


def make(folder: Path) -> Path:
    """In `folder`: an authority, `leaf`, `entry`, `client`, `stranger`, and a token. `old` expired yesterday. In `folder/foreign`
    the same of another authority.
    """
    wanted = [Wanted(name=name, graph=GRAPH, hosts=LOOPBACK) for name in DEPLOYMENTS]
    wanted += [Wanted(name=name, graph=GRAPH, serves=False) for name in CLIENTS]
    make_certificates(folder, wanted, days=30)
    make_certificates(folder / "foreign", wanted, days=30)
    before = datetime.now(UTC) - timedelta(days=31)
    make_certificates(folder, [Wanted(name="old", graph=GRAPH, hosts=LOOPBACK)], days=30, now=before)
    return folder


def guarded(folder: Path, caller: str = "client") -> tuple[Incoming, Outgoing]:
    """Mutual TLS and a token: `leaf`, which `client` and `entry` may call, and `caller`, who does."""
    incoming = Incoming(
        cert=str(folder / "leaf.crt"),
        key=str(folder / "leaf.key"),
        caller_ca=str(folder / "ca.crt"),
        callers=(f"spiffe://{GRAPH}/client", f"entry.{GRAPH}"),
        token_file=str(folder / "token"),
    )
    outgoing = Outgoing(
        tls=True,
        ca=str(folder / "ca.crt"),
        server_name=f"leaf.{GRAPH}",
        cert=str(folder / f"{caller}.crt"),
        key=str(folder / f"{caller}.key"),
        token_file=str(folder / "token"),
    )
    return incoming, outgoing
