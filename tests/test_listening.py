"""Why nobody can listen there, in one sentence."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from toolkit.errors import StartError
from toolkit.listening import check_free


def refusal(address: str) -> str:
    with pytest.raises(StartError) as caught:
        check_free(address)
    return str(caught.value)


def test_a_free_port_is_free_and_stays_so() -> None:
    for _ in range(2):
        check_free("127.0.0.1:0")
        check_free("[::1]:0")
        check_free("0.0.0.0:0")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        said = f"cannot listen on {address}: it is taken; stop whoever holds it, or name another port"
        assert refusal(address) == said
    check_free(address)


def test_an_address_of_another_machine_is_told() -> None:
    assert refusal("192.0.2.1:5000").startswith("cannot listen on 192.0.2.1:5000: it is no address of this machine;")


def test_a_host_that_does_not_exist_is_told() -> None:
    assert refusal("no-such-host.invalid:5000").startswith(
        "cannot listen on no-such-host.invalid:5000: there is no host no-such-host.invalid ("
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use every port")
def test_a_port_that_is_not_allowed_is_told() -> None:
    assert "this user may not" in refusal("127.0.0.1:1")


def test_a_socket_that_nobody_answers_is_free(tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    check_free(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    check_free(f"unix:{path}")


def test_a_socket_that_somebody_answers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert refusal(f"unix:{path}") == (
            f"cannot listen on unix:{path}: somebody does; stop them, or name another path"
        )


def test_a_file_and_a_folder_that_is_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(f"unix:{tmp_path}/file").endswith(": there is a file that is no socket; name another path")
    assert refusal(f"unix:{tmp_path}/no/x").endswith(
        f": there is no folder {tmp_path}/no; make it, or name another path"
    )
