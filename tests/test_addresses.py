"""Where replicas listen: private, short enough, and swept when a launcher was killed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toolkit.launcher.addresses import MAX_SOCKET_BYTES, choose_addresses, choose_base, runtime_folder, sweep
from toolkit.launcher.placement import Placed

REPLICAS = [
    Placed(deployment=name, index=index, name=f"{name}.{index}", device="cpu")
    for name, count in (("gpt2", 2), ("n" * 40, 256))
    for index in range(count)
]


def test_each_replica_has_a_socket_of_its_own() -> None:
    found = choose_addresses(REPLICAS, Path("/tmp/toolkit-abcdefgh"))
    assert found["gpt2"] == (
        "unix:/tmp/toolkit-abcdefgh/gpt2.0.1.sock",
        "unix:/tmp/toolkit-abcdefgh/gpt2.1.1.sock",
    )
    assert len({address for addresses in found.values() for address in addresses}) == len(REPLICAS)


def test_without_unix_sockets_each_has_a_port() -> None:
    ports = iter(range(5000, 6000))
    assert choose_addresses(REPLICAS, Path("/x"), pick_port=lambda: next(ports))["gpt2"] == (
        "127.0.0.1:5000",
        "127.0.0.1:5001",
    )


@pytest.mark.parametrize("length", [10, 31, 32, 60])
def test_the_longest_path_fits_into_a_socket_address(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    runtime = "/" + "r" * (length - 1)
    base = choose_base({"XDG_RUNTIME_DIR": runtime})
    longest = max(
        len(address) for each in choose_addresses(REPLICAS, base / "toolkit-abcdefgh").values() for address in each
    )
    assert longest - len("unix:") <= MAX_SOCKET_BYTES
    assert str(base) == (runtime if length <= 31 else "/tmp")


@pytest.mark.parametrize("runtime", [None, "", "run/user", "/does/not/exist"])
def test_without_a_runtime_folder_it_is_tmp(runtime: str | None) -> None:
    assert choose_base({} if runtime is None else {"XDG_RUNTIME_DIR": runtime}) == Path("/tmp")


def test_the_folder_is_private_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.launcher.addresses.choose_base", lambda environ: tmp_path)
    with runtime_folder({}) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "a.sock").touch()
    assert list(tmp_path.iterdir()) == []


def test_only_what_a_dead_launcher_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.launcher.addresses.choose_base", lambda environ: tmp_path)
    dead, unnamed, other = tmp_path / "toolkit-dead", tmp_path / "toolkit-new", tmp_path / "other"
    for folder in (dead, unnamed, other):
        folder.mkdir()
        (folder / "x.sock").touch()
    (dead / "lock").touch()
    (other / "lock").touch()
    with runtime_folder({}) as living:
        sweep(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted((living, unnamed, other))
