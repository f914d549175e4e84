"""What services need is fetched beforehand, by their classes, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLASSES = """
import subprocess
from services.echo.v1.echo_toolkit import EchoBase
from toolkit.errors import StartError
from toolkit.service import progress


class Fetches(EchoBase):
    def __init__(self, model, device="cpu"):
        raise AssertionError("nothing is made")

    @classmethod
    def __fetch__(cls, model):
        print("a line of a library")
        subprocess.run(["echo", "a line of a program that it starts"])
        progress(f"download {model}", 1, 2)


class Plain(EchoBase):
    pass


class Fails(EchoBase):
    @classmethod
    def __fetch__(cls):
        raise StartError("there is no such model; name another")


class Endless(EchoBase):
    @classmethod
    def __fetch__(cls):
        import time
        progress("download", 1, 2)
        time.sleep(600)


class Dies(EchoBase):
    @classmethod
    def __fetch__(cls):
        import os
        os._exit(3)
"""


def begin(folder: Path, services: str, *names: str) -> subprocess.Popen[str]:
    (folder / "classes.py").write_text(CLASSES)
    (folder / "graph.yaml").write_text(f"name: g\nentry: a\nservices:\n{services}")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codegen'}"}
    command = [sys.executable, "-m", "toolkit", "fetch", "graph.yaml", *names]
    return subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def fetch(folder: Path, services: str, *names: str) -> subprocess.CompletedProcess[str]:
    process = begin(folder, services, *names)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_ctrl_c_ends_it_without_a_word(tmp_path: Path) -> None:
    process = begin(tmp_path, '  a: {class: "classes:Endless"}\n')
    assert process.stderr is not None
    assert process.stderr.readline() == "a | download 1/2\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate() == ("", "")
    assert process.returncode == 130


def test_a_class_fetches_with_those_of_its_args_that_it_takes(tmp_path: Path) -> None:
    services = '  a: {class: "classes:Fetches", args: {model: tiny, other: 3}}\n  b: {class: "classes:Plain"}\n'
    done = fetch(tmp_path, services)
    assert done.returncode == 0
    assert done.stdout == ""
    assert "a | download tiny 1/2" in done.stderr
    assert "a | fetched" in done.stderr
    assert "b | nothing to fetch" in done.stderr


def test_one_that_cannot_be_fetched_is_told_and_the_others_are_fetched(tmp_path: Path) -> None:
    services = '  a: {class: "classes:Fails"}\n  b: {class: "classes:Fetches", args: {model: tiny}}\n'
    done = fetch(tmp_path, services)
    assert done.returncode == 1
    assert "error: a: there is no such model; name another" in done.stderr
    assert "b | fetched" in done.stderr
    assert "Traceback" not in done.stderr


def test_some_may_be_named(tmp_path: Path) -> None:
    services = '  a: {class: "classes:Fails"}\n  b: {class: "classes:Plain"}\n'
    assert fetch(tmp_path, services, "b").returncode == 0
    assert fetch(tmp_path, services, "c").returncode == 2


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    done = fetch(tmp_path, '  a: {class: "classes:Dies"}\n')
    assert done.returncode == 1
    assert done.stderr.endswith("error: fetching ended with exit code 3 and without a; see above\n")
