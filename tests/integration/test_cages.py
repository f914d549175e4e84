"""Memory limits of the kernel. What a kernel does is tried in one: User Mode Linux, a kernel that runs as a process, where it
is installed (Debian: user-mode-linux). It sees this machine's files, and may not write to them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_placement import HUNGRY
from tests.integration.up import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]  # it emulates a whole machine

KERNEL = shutil.which("linux.uml")
INIT = """#!/bin/bash
export PATH={path}
mount -t proc proc /proc; mount -t tmpfs tmpfs /run; mount -t devtmpfs dev /dev; mount -t cgroup2 cgroup /sys/fs/cgroup
ip link set lo up
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/scope
export TERM=dumb XDG_RUNTIME_DIR=/run PYTHONPATH={root}:{root}/codegen PYTHONDONTWRITEBYTECODE=1
cd {folder}
bash -c 'echo $$ > /sys/fs/cgroup/scope/cgroup.procs; {python} -m toolkit up graph.yaml; echo "shared: exit $?"' 2>&1
bash -c 'echo $$ > /sys/fs/cgroup/scope/cgroup.procs; exec {python} -m toolkit up graph.yaml' 2>&1
echo "alone: exit $?"
echo 250M > /sys/fs/cgroup/scope/memory.max; echo 0 > /sys/fs/cgroup/scope/memory.swap.max
bash -c 'echo $$ > /sys/fs/cgroup/scope/cgroup.procs; exec {python} -m toolkit up unlimited.yaml' 2>&1
echo "container: exit $?"
echo "left: $(ls -d /sys/fs/cgroup/scope/*/ 2> /dev/null)"
mount -t proc proc /proc; echo o > /proc/sysrq-trigger; sleep 9
"""
GRAPH = """\
name: test
entry: entry
services:
  entry: {class: "hungry:Hungry", args: {mib: 400}, resources: {memory: 200MiB}}
"""


@pytest.mark.skipif(KERNEL is None, reason="there is no kernel to try it in: apt-get install user-mode-linux")
def test_a_kernel_keeps_the_limit_where_it_can_and_is_named_where_it_ends_a_replica(tmp_path: Path) -> None:
    assert KERNEL is not None
    (tmp_path / "hungry.py").write_text(HUNGRY)
    (tmp_path / "graph.yaml").write_text(GRAPH)
    (tmp_path / "unlimited.yaml").write_text(GRAPH.replace(", resources: {memory: 200MiB}", ""))
    init = tmp_path / "init"
    init.write_text(INIT.format(path=os.environ["PATH"], root=ROOT, folder=tmp_path, python=sys.executable))
    init.chmod(0o755)
    options = [
        "mem=2G",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        f"init={init}",
        "con=null",
        "con0=fd:0,fd:1",
        "quiet",
    ]
    done = subprocess.run([KERNEL, *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    said = done.stdout.splitlines()
    how = [line for line in said if line.startswith("resources.memory: ")]
    assert how == [
        "resources.memory: the launcher watches, and ends a replica that takes more",
        "resources.memory: the kernel keeps it, by a cgroup for each replica",
    ]
    errors = [line for line in said if line.startswith("error: ")]
    assert re.match(r"error: entry: out of memory: used 2\d\d(\.\d+)?MiB of resources\.memory 200MiB; raise", errors[0])
    assert errors[1].startswith("error: entry: out of memory: used 200MiB of resources.memory 200MiB; raise it")
    assert errors[2].startswith(
        "error: entry: out of memory: the kernel ended it, for this machine or its container has"
    )
    assert len(errors) == 3
    assert [line for line in said if line.startswith(("shared: ", "alone: ", "container: ", "left: "))] == [
        "shared: exit 1",
        "alone: exit 1",
        "container: exit 1",
        "left: ",
    ]
