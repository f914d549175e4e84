"""Devices, cores and memory, as a user meets them: the real `toolkit up`, with GPUs that are not there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest

from tests.integration.up import Project, toolkit, up

pytestmark = pytest.mark.integration


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_a_dry_run_prints_the_plan_and_starts_nothing(project: Project) -> None:
    path = project.write(
        dedent("""
        big: {class: "none:Such", device: cuda, replicas: 2, resources: {gpu_memory: 20GiB}}
        small: {class: "none:Such", resources: {gpu_memory: 3GiB, cpus: 1}}
        entry: {class: "none:Such", device: cpu}
    """)
    )
    done = toolkit("up", path.name, "--dry-run", "--fake-gpus", "2x24GiB", folder=project.folder)
    assert (done.returncode, done.stderr) == (0, "")
    machine, *lines = done.stdout.splitlines()
    assert machine.startswith("machine: cores ")
    assert lines[:2] == [
        "machine: cuda:0 GPU-fake-0 (fake 24GiB), 23.5GiB of 24GiB to hand out",
        "machine: cuda:1 GPU-fake-1 (fake 24GiB), 23.5GiB of 24GiB to hand out",
    ]
    got = {line.partition(" |")[0].strip(): line.partition("| ")[2].partition(" (fake")[0] for line in lines[2:]}
    assert got.pop("entry").startswith("cpu")
    assert got == {"big.0": "cuda:0 GPU-fake-0", "big.1": "cuda:1 GPU-fake-1", "small": "cuda:0 GPU-fake-0"}
    assert all("CUDA_VISIBLE_DEVICES=GPU-fake-" in line for line in lines[2:5])


def test_what_does_not_fit_is_refused_before_anything_starts(project: Project) -> None:
    path = project.write('entry: {class: "classes:Leaf", device: cuda, resources: {gpu_memory: 30GiB}, port: PORT}')
    memory = "services.entry.resources.gpu_memory"
    for options in (["--dry-run"], []):
        done = toolkit("up", path.name, *options, "--fake-gpus", "1x24GiB", folder=project.folder)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.splitlines() == [
            f"error: graph.yaml:4: {memory}: entry wants cuda, and no GPU has 30GiB free",
            "error:   cuda:0 GPU-fake-0 (fake 24GiB): 23.5GiB free of 24GiB; held by nobody",
            f"error:   either lower {memory} to 23.5GiB; or say on_unsatisfiable: cpu, to let it run there",
        ]


def test_fake_gpus_that_cannot_be_read_are_wrong_usage(project: Project) -> None:
    path = project.write('entry: {class: "classes:Leaf"}')
    done = toolkit("up", path.name, "--dry-run", "--fake-gpus", "two", folder=project.folder)
    assert done.returncode == 2
    assert "--fake-gpus must be COUNTxSIZE, such as 2x24GiB" in " ".join(done.stderr.split())


def environ_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(each.partition("=")[::2] for each in text.split("\0") if each)


def test_each_replica_sees_its_own_device_alone(project: Project) -> None:
    path = project.write(
        dedent("""
        leaf: {class: "classes:Leaf", device: cuda, replicas: 2, resources: {gpu_memory: 20GiB}}
        lost: {class: "classes:Leaf", device: cuda, on_unsatisfiable: cpu, resources: {gpu_memory: 20GiB}}
        entry: {class: "classes:Caller", device: cpu, port: PORT}
    """)
    )
    with up(path, "--fake-gpus", "2x24GiB") as running:
        lost = running.wait_line("lost   | ")
        running.wait_ready()
        seen = [environ_of(pid) for pid in running.replicas()]
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    found = {each["TOOLKIT_DEPLOYMENT"] + each.get("TOOLKIT_REPLICA", ""): each for each in seen}
    assert {name: each["CUDA_VISIBLE_DEVICES"] for name, each in found.items()} == {
        "leaf": "GPU-fake-0",
        "leaf1": "GPU-fake-1",
        "lost": "",
        "entry": "",
    }
    assert {name: each.get("TOOLKIT_DEVICE") for name, each in found.items()} == {
        "leaf": "cuda:0",
        "leaf1": "cuda:0",
        "lost": None,
        "entry": None,
    }
    assert "cpu(!), as on_unsatisfiable says: no GPU has 20GiB free" in lost


HUNGRY = '''
import asyncio, os, subprocess, sys, time
import numpy
from services.echo.v1.echo_toolkit import EchoBase, Note


class Hungry(EchoBase):
    """It takes what it is told to: at its start, in a call, or in a process that it starts."""

    def __init__(self, mib=0, child=False):
        self.held = numpy.ones(mib << 20, numpy.uint8)

    async def say(self, request, context):
        match request.text.split():
            case ["child", mib]:
                code = f"import numpy, time; held = numpy.ones({int(mib)} << 20, numpy.uint8); time.sleep(600)"
                subprocess.run([sys.executable, "-c", code])
            case ["stay", mib]:
                self.held = numpy.ones(int(mib) << 20, numpy.uint8)
                await asyncio.Event().wait()
            case [mib]:
                self.held = numpy.ones(int(mib) << 20, numpy.uint8)
        threads = os.environ["OMP_NUM_THREADS"]
        return Note(text=f"{threads} {sorted(os.sched_getaffinity(0))}", number=os.getpid())
'''


@pytest.fixture
def hungry(project: Project) -> Project:
    (project.folder / "hungry.py").write_text(HUNGRY)
    return project


def say(project: Project, text: str) -> subprocess.CompletedProcess[str]:
    return toolkit("call", "Say", json.dumps({"text": text}), "--graph", "graph.yaml", folder=project.folder)


ENTRY = 'entry: {class: "hungry:Hungry", port: PORT, resources: {memory: 400MiB, cpus: 1}}'
OUT_OF_MEMORY = re.compile(
    r"error: entry: out of memory: used ([0-9.]+)(MiB|GiB) of resources\.memory 400MiB; raise it, or lower what the model takes: "
    r"its batches, or traffic\.max_concurrency(; starts again in 0\.2 s)?"
)


@pytest.mark.parametrize("text", ["stay 600", "child 600"])
def test_a_replica_that_takes_too_much_is_ended_and_told_so(hungry: Project, text: str) -> None:
    with up(hungry.write(ENTRY)) as running:
        assert "memory 400MiB" in running.wait_line("entry | ")
        running.wait_line("resources.memory: ")
        running.wait_ready()
        assert say(hungry, "100").returncode == 0
        assert say(hungry, text).returncode == 1
        running.wait_line("entry#2 | ready after")
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    (error,) = running.errors
    told = OUT_OF_MEMORY.fullmatch(error)
    assert told
    assert told[2] == "GiB" or float(told[1]) >= 400


def test_a_model_that_does_not_fit_is_told_before_it_is_ready(hungry: Project) -> None:
    with up(hungry.write(ENTRY.replace("port:", "args: {mib: 600}, port:"))) as running:
        assert running.wait_exit() == 1
    (error,) = running.errors
    told = OUT_OF_MEMORY.fullmatch(error)
    assert told, error
    assert told[3] is None, "it is not tried again"


PATIENT = """
import time
from pathlib import Path
from hungry import Hungry


class Patient(Hungry):
    # Takes nothing before it is told to.
    def __init__(self, mib):
        print("hungry", flush=True)
        while not Path("eat").exists():
            time.sleep(0.01)
        super().__init__(mib)
"""


def test_a_model_that_does_not_fit_is_never_ready_however_late_the_launcher_looks(hungry: Project) -> None:
    (hungry.folder / "patient.py").write_text(PATIENT)
    entry = ENTRY.replace("hungry:Hungry", "patient:Patient").replace("port:", "args: {mib: 600}, port:")
    with up(hungry.write(entry)) as running:
        running.wait_line("hungry")
        running.signal(signal.SIGSTOP)
        (hungry.folder / "eat").touch()
        target = f"127.0.0.1:{hungry.port}"
        while toolkit("call", "Say", "{}", "--target", target, folder=hungry.folder).returncode:
            pass  # until it has said that it is ready
        running.signal(signal.SIGCONT)
        assert running.wait_exit() == 1
    (error,) = running.errors
    told = OUT_OF_MEMORY.fullmatch(error)
    assert told, error
    assert told[3] is None, "it is not tried again"


def test_a_replica_has_the_cores_and_threads_of_the_plan(hungry: Project) -> None:
    with up(hungry.write(ENTRY)) as running:
        plan = running.wait_line("entry | ")
        running.wait_ready()
        (pid,) = running.replicas()
        bound = set()
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                bound.add(frozenset(os.sched_getaffinity(int(thread))))
        answer = json.loads(say(hungry, "").stdout)["text"]
        running.signal(signal.SIGTERM)
        assert running.wait_exit() == 0
    first = min(os.sched_getaffinity(0))
    assert bound == {frozenset({first})}
    assert answer == f"1 [{first}]"
    assert f"cores {first}" in plan
