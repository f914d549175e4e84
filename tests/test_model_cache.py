"""Folders made once: complete or not there, whoever is killed and however many ask at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.model_cache import MARKER, cache_folder, is_complete, is_intact, made_once
from toolkit.errors import StartError


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(b"1234")


def refuse(folder: Path) -> None:
    raise AssertionError(f"{folder} was made a second time")


def test_a_folder_is_made_once_and_found_later(tmp_path: Path) -> None:
    folder = made_once(tmp_path / "deep" / "model", write)
    assert (folder / "weights").read_bytes() == b"1234"
    assert made_once(folder, refuse) == folder
    assert is_intact(folder)


def test_what_fails_halfway_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        made_once(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert is_complete(made_once(tmp_path / "model", write))


def test_what_a_killed_process_left_is_made_anew(tmp_path: Path) -> None:
    for name in ("model", "model.partial"):  # killed before the marker, or before the rename
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"12")
    assert (made_once(tmp_path / "model", write) / "weights").read_bytes() == b"1234"
    assert not (tmp_path / "model.partial").exists()


@pytest.mark.parametrize("damage", [b"12", None])
def test_a_file_that_is_short_or_gone_is_made_anew(tmp_path: Path, damage: bytes | None) -> None:
    folder = made_once(tmp_path / "model", write)
    (folder / "weights").unlink()
    if damage is not None:
        (folder / "weights").write_bytes(damage)
    assert not is_complete(folder)
    assert (made_once(folder, write) / "weights").read_bytes() == b"1234"


def test_a_changed_byte_is_found_by_who_reads_all(tmp_path: Path) -> None:
    folder = made_once(tmp_path / "model", write)
    (folder / "weights").write_bytes(b"12X4")
    assert is_complete(folder)
    assert not is_intact(folder)


@pytest.mark.parametrize("marker", ["", "[]", "{", '{"weights": 4}'])
def test_a_marker_that_cannot_be_read_marks_nothing(tmp_path: Path, marker: str) -> None:
    folder = made_once(tmp_path / "model", write)
    (folder / MARKER).write_text(marker)
    assert not is_complete(folder)


def test_of_two_at_once_one_makes_and_the_other_waits(tmp_path: Path) -> None:
    made: list[Path] = []
    begun = threading.Event()
    asked = threading.Event()

    def make_slowly(folder: Path) -> None:
        made.append(folder)
        begun.set()
        assert asked.wait(10)
        write(folder)

    def ask_second() -> Path:
        assert begun.wait(10)
        asked.set()
        return made_once(tmp_path / "model", make_slowly)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made_once, tmp_path / "model", make_slowly)
        second = pool.submit(ask_second)
        assert first.result(10) == second.result(10)
    assert len(made) == 1


def test_who_waits_too_long_is_told_whom_for(tmp_path: Path) -> None:
    def ask_again(folder: Path) -> None:
        with ThreadPoolExecutor(1) as pool, pytest.raises(StartError, match=r"kept .*model\.lock locked for 0 s"):
            pool.submit(made_once, tmp_path / "model", refuse, patience=0.01).result(10)
        write(folder)

    made_once(tmp_path / "model", ask_again)


def test_a_folder_that_cannot_be_written_is_told_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StartError, match=r"cannot write .* MODEL_CACHE"):
        made_once(tmp_path / "file" / "model", write)


def test_the_place_is_the_users_cache_or_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/x")
    assert cache_folder() == Path("/var/x/grpc-model-toolkit/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/grpc-model-toolkit/models"
    monkeypatch.setenv("MODEL_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")
