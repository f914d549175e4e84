"""Tokens and other secrets in files: what is accepted, what is refused, and what happens when they change."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from toolkit.credentials import Watched, bearer, check_private, find_refusal, watch_tokens

OLD, NEW = b"old-token-0123456789", b"new-token-0123456789"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_bytes(OLD + b"\n")
    return path


def test_each_line_is_a_token(file: Path) -> None:
    file.write_bytes(b"\n" + NEW + b"  \n\r\n" + OLD)
    assert watch_tokens(str(file)).current() == (NEW, OLD)


def test_a_changed_file_is_read_again(file: Path) -> None:
    tokens = watch_tokens(str(file))
    assert tokens.current() == (OLD,)
    file.write_bytes(NEW)  # of the same size, and within the same tick of a coarse clock
    assert tokens.current() == (NEW,)


def test_a_replaced_file_is_read_again(file: Path) -> None:
    tokens = watch_tokens(str(file))
    other = file.with_name("other")
    other.write_bytes(NEW)
    other.replace(file)
    assert tokens.current() == (NEW,)


def test_a_file_that_did_not_change_gives_the_same_object(file: Path) -> None:
    os.utime(file, (1, 1))
    tokens = watch_tokens(str(file))
    assert tokens.current() is tokens.current()


@pytest.mark.parametrize("half_written", [b"", b"\n\n", b"short", b"with a space in it, and long enough"])
def test_a_file_that_is_half_written_keeps_the_tokens_and_complains_once(
    file: Path, half_written: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = watch_tokens(str(file))
    file.write_bytes(half_written)
    with caplog.at_level(logging.WARNING, "toolkit"):
        assert [tokens.current(), tokens.current()] == [(OLD,), (OLD,)]
    assert len(caplog.records) == 1
    file.write_bytes(NEW)
    assert tokens.current() == (NEW,)


def test_a_file_that_is_gone_keeps_the_tokens(file: Path) -> None:
    tokens = watch_tokens(str(file))
    file.unlink()
    assert tokens.current() == (OLD,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no token; make one: openssl rand -hex 32"),
        (b"hunter2", "line 1 is no token"),
        (OLD + b"\n" + b"x" * 15, "line 2 is no token"),
        (b"Bearer " + OLD, "line 1 is no token"),
        (b"\xff" * 20, "line 1 is no token"),
        (b"x" * 2_000_000, "larger than 1 MiB"),
    ],
)
def test_what_is_no_token_is_said_without_showing_it(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=said) as caught:
        watch_tokens(str(file))
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gone: no such file"):
        watch_tokens(str(tmp_path / "gone"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_secret_that_others_can_read_is_refused_with_the_cure(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(ValueError, match=f"other users can read this secret; run: chmod 600 {file}"):
        check_private(str(file))


def test_a_folder_is_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file"):
        check_private(str(tmp_path))


@pytest.mark.parametrize("value", [bearer(OLD), bearer(NEW), "bearer " + OLD.decode(), bearer(NEW).encode()])
def test_every_token_of_the_file_is_accepted(value: str | bytes) -> None:
    assert find_refusal(value, (NEW, OLD)) is None


@pytest.mark.parametrize(
    "value", ["", "Bearer ", OLD.decode(), "Basic " + OLD.decode(), "Bearer ö", "Bearer " + OLD.decode()[:-1], b"\xff"]
)
def test_everything_else_is_refused(value: str | bytes) -> None:
    assert find_refusal(value, (NEW, OLD)) == "this token is not accepted; it may have been replaced by a new one"


def test_nothing_is_refused_with_what_is_needed() -> None:
    said = find_refusal(None, (OLD,))
    assert said is not None
    assert "authorization: Bearer TOKEN" in said


def test_a_value_of_several_files_is_made_again_when_one_of_them_changes(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    both = Watched([str(one), str(two)], b"".join)
    two.write_bytes(b"c")
    assert both.current() == b"ac"
