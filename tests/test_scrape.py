"""`/metrics` over HTTP: what is asked for, and what those get who ask for something else or for nothing."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from toolkit.errors import StartError
from toolkit.metrics import CONTENT_TYPE
from toolkit.scrape import MAX_REQUEST, served

ANYWHERE = "127.0.0.1:0"


def get(address: str, path: str = "/metrics") -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def say(address: str, request: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_text_is_served_as_it_is_at_that_moment() -> None:
    texts = iter(["one é\n", "two\n"])
    with served(ANYWHERE, lambda: next(texts)) as address:
        assert get(address) == (200, CONTENT_TYPE, "one é\n")
        assert get(address, "/metrics?name=x") == (200, CONTENT_TYPE, "two\n")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics/more HTTP/1.1", b"404"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"nonsense", b"405"),
        (b"", b"405"),
    ],
)
def test_nothing_else_is_served(request_line: bytes, status: bytes) -> None:
    with served(ANYWHERE, lambda: "text") as address:
        assert say(address, request_line + b"\r\n\r\n").split(b" ")[1] == status


def test_a_request_without_end_is_cut_off() -> None:
    with served(ANYWHERE, lambda: "text\n") as address:
        with suppress(ConnectionError):
            say(address, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100 * MAX_REQUEST)
        assert get(address)[2] == "text\n"


def test_one_who_says_nothing_or_leaves_keeps_nobody_else_out() -> None:
    with served(ANYWHERE, lambda: "text\n") as address:
        host, _, port = address.rpartition(":")
        silent = socket.create_connection((host, int(port)))
        socket.create_connection((host, int(port))).close()
        with silent:
            assert get(address)[2] == "text\n"


def test_figures_that_cannot_be_told_are_an_error_and_the_next_time_is_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = iter([False, True])

    def text() -> str:
        if next(answers):
            return "fine\n"
        raise RuntimeError("secret")

    with served(ANYWHERE, text) as address:
        status, _, said = get(address)
        assert (status, "secret" in said) == (500, False)
        assert "secret" in caplog.text
        assert get(address)[2] == "fine\n"


def test_a_port_that_is_taken_is_told_at_once() -> None:
    with (
        served(ANYWHERE, lambda: "") as address,
        pytest.raises(StartError, match=f"cannot listen on {address}: it is taken"),
        served(address, lambda: ""),
    ):
        pass


def test_the_port_is_free_afterwards() -> None:
    with served(ANYWHERE, lambda: "first\n") as address:
        pass
    with served(address, lambda: "second\n"):
        assert get(address)[2] == "second\n"
