"""The documentation: its site has no dead link, and what its pages tell a reader to type does what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from threading import Thread, Timer
from types import TracebackType
from typing import Any, Final, Self

import pytest

from scripts.diagrams import renewed
from services.models import model_folder
from tests.pages import DOCS, FIRST_TERMINAL, ROOT, Block, Page, fits, is_excerpt, read_page
from tests.ports import pick_port
from toolkit.launcher.manifest import load_graph

pytestmark = pytest.mark.integration
BIN: Final = Path(sys.executable).parent
LIMIT: Final = 110.0
"""Seconds that one block may take."""
PORTS: Final = ("50051", "50052", "9464")
"""What the pages say; on the test's machine somebody else may listen there, so that these become free ones: in what is
typed, in the files that are written, and between two blocks in the graph files that `toolkit new` makes."""
DOWNLOADED: Final = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "sentence-transformers/all-MiniLM-L6-v2": "minilm-l6",
}
"""Repositories of the hub that a reader's machine has already, and what we call them; no page may ask for another. A page that
runs in the repository may ask for none: our examples are offline."""
PAGES: Final = [page for page in map(read_page, sorted(DOCS.rglob("*.md"))) if page.runs]
SESSION: Final = """
import ast, asyncio, contextlib, importlib, inspect, io, json, sys, traceback
async def main():
    names = {"__name__": "__main__"}
    for line in iter(sys.stdin.readline, ""):
        block, failed = json.loads(line), ""
        importlib.invalidate_caches()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                code = compile(block["text"], block["place"], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                found = eval(code, names)
                if inspect.iscoroutine(found):
                    await found
            except Exception:
                failed = traceback.format_exc()
        print(json.dumps([printed.getvalue(), failed]), flush=True)
asyncio.run(main())
"""
"""Runs blocks of Python as they come, in one namespace and one event loop, as `python -m asyncio` does."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [BIN / "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_no_dead_link(site: Path) -> None:
    assert (site / "start" / "index.html").is_file()  # it was built, and a dead link is an error


class Loads(HTMLParser):
    """What a browser asks for by itself to show a page, and the classes of the page's elements."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: set[str] = set()
        self.classes: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.classes |= {*found.get("class", "").split(), found.get("data-md-component", "")}
        if tag != "a":
            self.addresses |= {found[name] for name in ("src", "srcset", "href", "data", "poster") if name in found}


def test_a_browser_needs_nothing_from_elsewhere(site: Path) -> None:
    pages = list(map(Loads, site.rglob("*.html")))
    assert len(pages) > 30
    asked = {address for page in pages for address in page.addresses}
    assert any(address.endswith(".js") for address in asked)
    assert [address for address in asked if re.match(r"(\w+:)?//", address)] == []
    for styles in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?(https?:)?//", styles.read_text(encoding="utf-8")), styles
    (script,) = site.glob("assets/javascripts/bundle.*.js")
    known = {"unpkg.com/mermaid", "unpkg.com/resize-observer-polyfill", "api.github.com/repos", "api.github.com/users"}
    assert set(re.findall(r"[\"'`]https://(\w[\w.-]+/[\w-]+)", script.read_text(encoding="utf-8"))) == known
    # The script asks for mermaid and for the repository where a page has them, and for the polyfill in browsers before 2020.
    for page in pages:
        assert not page.classes & {"mermaid", "source"}


def test_the_diagrams_are_those_of_the_graphs() -> None:
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))]
    assert list(map(renewed, pages)) == pages, "run scripts/generate"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path.relative_to(DOCS)))
def test_a_page_does_what_it_says(page: Page, tmp_path: Path) -> None:
    with Reader(page, tmp_path) as reader:
        for block in page.blocks:
            if not block.reason:
                reader.follow(block)


class Reader:
    """Somebody who follows a page from its top, with a terminal or two."""

    def __init__(self, page: Page, folder: Path) -> None:
        self._page = page
        self._home = self._cwd = folder
        self._ports = {port: str(pick_port()) for port in PORTS}
        self._running: subprocess.Popen[str] | None = None
        self._listener = Thread()
        self._python: subprocess.Popen[str] | None = None
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        self._environ = {**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "110"}
        self._environ["XDG_STATE_HOME"] = str(folder / ".state")
        self._environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / ".hub")}

    def __enter__(self) -> Self:
        if self._page.in_repository:
            for name in ("services", "protos", "tests", "pyproject.toml"):
                (self._home / name).symlink_to(ROOT / name)
        else:
            for name, model in DOWNLOADED.items():
                downloaded = self._home / ".hub" / "hub" / f"models--{name.replace('/', '--')}"
                for kind in ("refs", "snapshots"):
                    (downloaded / kind).mkdir(parents=True)
                (downloaded / "refs" / "main").write_text("here")
                (downloaded / "snapshots" / "here").symlink_to(model_folder(model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._python is not None:
            self._python.kill()
            self._python.communicate()
        self._end_running(kind is None)
        if kind is not None:  # a graph that was left running by itself
            subprocess.run([BIN / "toolkit", "down"], cwd=self._cwd, env=self._environ, timeout=LIMIT, check=False)

    def follow(self, block: Block) -> None:
        place = f"{self._page.path.relative_to(ROOT)}:{block.line}"
        text = self._here(block.text)
        if block.language == "sh" and block.title == FIRST_TERMINAL:
            printed = self._start(text, place)
        elif block.language == "sh":
            printed = self._shell(text, place)
        elif block.title:
            return self._file(block, text, place)
        elif block.language == "python":
            printed = self._session(text, place)
        elif block.language == "yaml":
            return self._graph(text, place)
        else:
            raise AssertionError(f"{place}: {block.language or 'no language'}: say what it is, or why it is not run")
        if block.expected is not None:
            is_so = fits(self._here(block.expected), printed, any_numbers=block.any_numbers)
            assert is_so, f"{place} printed\n{printed}"
        return None

    def _here(self, text: str) -> str:
        return re.sub(rf"\b({'|'.join(self._ports)})\b", lambda found: self._ports[found[0]], text)

    def _shell(self, text: str, place: str) -> str:
        script = f"trap 'pwd > {self._home}/.cwd' EXIT\n{text}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self._cwd,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, f"{place}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        self._cwd = Path((self._home / ".cwd").read_text().strip())
        for path in [path for path in self._cwd.glob("*.yaml") if not path.is_symlink()]:
            path.write_text(self._here(path.read_text()))
        return done.stdout

    def _start(self, text: str, place: str) -> str:
        """Returns when it is ready, what it has said until then."""
        self._end_running(True)
        up = subprocess.Popen(
            ["bash", "-c", f"exec {text}"],
            cwd=self._cwd,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._running = up
        assert up.stdout is not None
        said, is_ready = [], False
        with ended_after(up, LIMIT):
            while not is_ready and (line := up.stdout.readline()):
                said.append(line)
                is_ready = line.startswith("ready: ") or (" serves " in line and " | " not in line)
        self._listener = Thread(target=up.stdout.read, daemon=True)  # so that it can go on talking
        self._listener.start()
        assert is_ready, f"{place}:\n{''.join(said)}"
        return "".join(said)

    def _end_running(self, is_good: bool) -> None:
        if self._running is not None:
            up, self._running = self._running, None
            up.send_signal(signal.SIGINT)
            with up, ended_after(up, LIMIT):
                code = up.wait()
                self._listener.join()
            assert code == 0 or not is_good

    def _session(self, text: str, place: str) -> str:
        if self._python is None:
            self._python = subprocess.Popen(
                [sys.executable, "-c", SESSION],
                cwd=self._cwd,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        python = self._python
        assert python.stdin is not None
        assert python.stdout is not None
        python.stdin.write(json.dumps({"text": text, "place": place}) + "\n")
        python.stdin.flush()
        with ended_after(python, LIMIT):
            answer = python.stdout.readline()
        assert answer, f"{place}: Python ended, or took longer than {LIMIT:g} s"
        printed, failed = json.loads(answer)
        assert not failed, f"{place}:\n{failed}"
        return str(printed)

    def _file(self, block: Block, text: str, place: str) -> None:
        ours = ROOT / block.title
        if self._page.in_repository and ours.is_file():
            assert is_excerpt(block.text, ours.read_text(encoding="utf-8")), f"{place}: not what {block.title} says"
            return
        path = self._cwd / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _graph(self, text: str, place: str) -> None:
        below, fragment = self._cwd / "graph.yaml", self._home / f"line-{place.rpartition(':')[2]}.yaml"
        fragment.write_text(text, encoding="utf-8")
        if "\nname:" in f"\n{text}":
            load_graph(fragment)
        else:
            assert below.is_file(), f"{place}: a part of a graph file, on a page without a graph.yaml"
            load_graph(below, [fragment])


@contextmanager
def ended_after(process: subprocess.Popen[Any], seconds: float) -> Iterator[None]:
    """Kill a process that takes longer, so that whoever reads from it goes on."""
    timer = Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
