"""The specification of a replica survives its way through the environment."""

from __future__ import annotations

import pytest

from toolkit.spec import Incoming, Outgoing, ReplicaSpec, is_exposed

FULL = ReplicaSpec(
    service="services.scoring.service:Scoring",
    deployment="classifier",
    replica=2,
    listen=("unix:/tmp/x/classifier.2.sock", "127.0.0.1:50051"),
    args={"model": "m", "temperature": 0.9, "labels": ["ja", "né\n"], "none": None},
    device="cuda:0",
    cores=(0, 3),
    memory=2 << 30,
    gpu_memory=6 << 30,
    addresses={"gpt2": ("unix:/tmp/x/gpt2.0.sock", "unix:/tmp/x/gpt2.1.sock")},
    bind={"writer": "gpt2"},
    timeout=1.5,
    max_concurrency=3,
    batching={"score": {"max_size": 8, "max_delay": 0.002}, "Embed": {}},
    max_message_bytes=1024,
    start_timeout=5.0,
    drain_timeout=0.5,
    reflection=True,
    incoming=Incoming(cert="c", key="k", caller_ca="a", callers=("spiffe://g/b",), token_file="t"),
    outgoing={"gpt2": Outgoing(tls=True, ca="a", server_name="gpt2.g", cert="c", key="k", token_file="t")},
    insecure=True,
    control_fd=7,
)


@pytest.mark.parametrize("spec", [FULL, ReplicaSpec(service="a:B")])
def test_what_goes_into_the_environment_comes_back(spec: ReplicaSpec) -> None:
    assert ReplicaSpec.from_environ(spec.to_environ()) == spec


def test_defaults_are_left_out() -> None:
    assert ReplicaSpec(service="a:B").to_environ() == {"TOOLKIT_SERVICE": "a:B"}


def test_other_variables_are_not_read() -> None:
    assert ReplicaSpec.from_environ({"TOOLKIT_SERVICE": "a:B", "PATH": "/bin"}) == ReplicaSpec(service="a:B")


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("TOOLKIT_REPLICA", "two"),
        ("TOOLKIT_REPLICA", "1.5"),
        ("TOOLKIT_REPLICA", "true"),
        ("TOOLKIT_TIMEOUT", '"5"'),
        ("TOOLKIT_LISTEN", '"127.0.0.1:1"'),
        ("TOOLKIT_LISTEN", "[1]"),
        ("TOOLKIT_CORES", "[0.5]"),
        ("TOOLKIT_MEMORY", '"2GiB"'),
        ("TOOLKIT_ARGS", "[]"),
        ("TOOLKIT_ADDRESSES", '{"a": "b"}'),
        ("TOOLKIT_ADDRESSES", '{"a": [1]}'),
        ("TOOLKIT_BIND", '{"a": 1}'),
        ("TOOLKIT_REFLECTION", "1"),
        ("TOOLKIT_INCOMING", "[]"),
        ("TOOLKIT_INCOMING", '{"cert": 1}'),
        ("TOOLKIT_INCOMING", '{"callers": "all"}'),
        ("TOOLKIT_INCOMING", '{"token": "secret"}'),
        ("TOOLKIT_OUTGOING", '{"gpt2": {"tls": 1}}'),
        ("TOOLKIT_ARGS", "[" * 100_000),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(variable: str, text: str) -> None:
    with pytest.raises(ValueError, match=variable):
        ReplicaSpec.from_environ({"TOOLKIT_SERVICE": "a:B", variable: text})


def test_a_missing_service_is_named() -> None:
    with pytest.raises(ValueError, match="TOOLKIT_SERVICE"):
        ReplicaSpec.from_environ({})


@pytest.mark.parametrize(
    "address", ["unix:/tmp/a.sock", "127.0.0.1:0", "127.8.8.8:1", "[::1]:1", "localhost:1", "dns:///[::1]:1"]
)
def test_the_loopback_and_sockets_are_this_machines_own(address: str) -> None:
    assert not is_exposed(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:0", "[::]:1", "10.0.0.1:1", ":1", "host:1", "unix-abstract:a", "dns:///host:1"]
)
def test_everything_else_is_open_to_a_network(address: str) -> None:
    assert is_exposed(address)
