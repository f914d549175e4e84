"""What a graph file can have wrong, as its writer sees it: one line each, an exit code, never a traceback."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.up import CLASSES, begin, toolkit, wait_gone, watch

pytestmark = pytest.mark.integration

HEAD = "name: test\nentry: entry\nservices:\n"


def verb_says(folder: Path, text: str, *verb: str) -> list[str]:
    """The lines of standard error but for those that say how far it is; the exit code is 2 and nothing is on standard output."""
    (folder / "classes.py").write_text(CLASSES)
    (folder / "graph.yaml").write_text(text)
    done = toolkit(*verb, folder=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    return [line for line in done.stderr.splitlines() if not line.startswith("graph.yaml | ")]


@pytest.mark.parametrize(
    "verb", [("up", "graph.yaml"), ("check", "graph.yaml"), ("call", "Say", "{}", "--graph", "graph.yaml")]
)
def test_every_verb_tells_every_problem_with_its_line(tmp_path: Path, verb: tuple[str, ...]) -> None:
    text = HEAD + '  entry: {class: "classes:Leaf", devcie: cpu}\n  other: {class: 3, replicas: none}\n'
    assert verb_says(tmp_path, text, *verb) == [
        "error: graph.yaml:4: services.entry.devcie: unknown key; did you mean 'device'?",
        "error: graph.yaml:5: services.other.class: must be text, not 3",
        'error: graph.yaml:5: services.other.replicas: must be a whole number, or a mapping with min and max, not "none"',
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "error: graph.yaml:1: must be a mapping with the keys name, entry and services, not nothing"),
        ("name: [1", "error: graph.yaml:1:9: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("\t- x", "error: graph.yaml:1:1: not YAML: found character '\\t' that cannot start any token"),
        (HEAD + "  entry: {class: !!python/name:os.system x}", "error: graph.yaml:4: services.entry.class: the tag"),
    ],
)
def test_a_file_that_is_no_graph(tmp_path: Path, text: str, line: str) -> None:
    (said,) = verb_says(tmp_path, text, "check", "graph.yaml")
    assert said.startswith(line)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert verb_says(tmp_path, "", "up", "grahp.yaml") == ["error: grahp.yaml: no such file"]


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ('  entry: {class: "clases:Leaf"}', "graph.yaml:4: services.entry.class: "),
        ('  entry: {class: "classes:Laef"}', "graph.yaml:4: services.entry.class: "),
        ('  entry: {class: "os:path"}', "graph.yaml:4: services.entry.class: "),
        ('  entry: {class: "broken:Leaf"}', "graph.yaml:4: services.entry.class: "),
        ('  entry: {class: "quits:Leaf"}', "graph.yaml:4: services.entry.class: "),
        (
            '  entry: {class: "classes:Leaf", args: {sise: 1}}',
            "graph.yaml:4: services.entry.args: Leaf takes no argument sise; it takes none",
        ),
        (
            '  entry: {class: "sized:Sized"}',
            "graph.yaml:4: services.entry.args: Sized needs size: give it under `args`, or with --args",
        ),
        (
            '  entry: {class: "classes:Caller"}',
            "graph.yaml:4: services.entry: classes:Caller has the handle 'leaf' and no deployment is named so",
        ),
        (
            '  leaf: {class: "classes:Leaf"}\n  entry: {class: "classes:Caller", bind: {leav: leaf}}',
            "graph.yaml:5: services.entry.bind.leav: classes:Caller has no such handle; did you mean 'leaf'?",
        ),
        (
            '  leaf: {class: "classes:Ring"}\n  entry: {class: "classes:Caller"}',
            "graph.yaml:4: services.leaf: a cycle of handles: leaf → entry → leaf",
        ),
    ],
)
def test_check_finds_what_only_the_classes_know(tmp_path: Path, services: str, expected: str) -> None:
    (tmp_path / "broken.py").write_text("print('hello from import')\n1 / 0\n")
    (tmp_path / "quits.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "sized.py").write_text(
        "from services.echo.v1.echo_toolkit import EchoBase\n"
        "class Sized(EchoBase):\n"
        "    def __init__(self, size, device): raise AssertionError('a check makes none')\n"
    )
    (said,) = verb_says(tmp_path, HEAD + services + "\n", "check", "graph.yaml")
    assert said.startswith(f"error: {expected}")


def test_check_says_ok(tmp_path: Path) -> None:
    (tmp_path / "classes.py").write_text(CLASSES)
    (tmp_path / "graph.yaml").write_text(HEAD + '  leaf: {class: "classes:Leaf"}\n  entry: {class: "classes:Caller"}\n')
    done = toolkit("check", "graph.yaml", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "ok: test: deployments 2, edges 1\n")


def test_what_a_module_prints_and_leaves_running_is_not_in_the_way_of_check(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(
        "import subprocess, threading\n"
        "from services.echo.v1.echo_toolkit import EchoBase\n"
        "subprocess.run(['echo', '[1]'])\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "class Loud(EchoBase): pass\n"
    )
    (tmp_path / "graph.yaml").write_text(HEAD + '  entry: {class: "loud:Loud"}\n')
    done = toolkit("check", "graph.yaml", folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, "ok: test: deployments 1, edges 0\n"), done.stderr


@pytest.mark.parametrize(
    "verb", [("check", "graph.yaml"), ("graph", "graph.yaml"), ("export", "compose", "graph.yaml")]
)
def test_imports_that_take_long_show_how_far_they_are(tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "late.py").write_text(
        "from pathlib import Path\n"
        "from services.echo.v1.echo_toolkit import EchoBase\n"
        "while not Path('go').exists(): pass\n"
        "class Late(EchoBase): pass\n"
    )
    (tmp_path / "graph.yaml").write_text(HEAD + '  entry: {class: "late:Late"}\n')
    process = begin(*verb, folder=tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline() == "graph.yaml | import late:Late 0/1\n"
    (tmp_path / "go").touch()
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "graph.yaml |" not in out


def test_ctrl_c_ends_a_check_and_what_it_asked(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text("import os\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: pass\n")
    (tmp_path / "graph.yaml").write_text(HEAD + '  entry: {class: "late:Late"}\n')
    process = begin("check", "graph.yaml", folder=tmp_path)
    assert process.stderr is not None
    process.stderr.readline()
    with watch([int((tmp_path / "pid").read_text())]) as inspector:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert wait_gone(inspector, 5)
    assert (process.returncode, out, err) == (130, "", "")
