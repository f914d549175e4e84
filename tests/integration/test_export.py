"""What an exported container runs, run by hand: the same command with the same environment, but for the port."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.alone import alone
from tests.integration.up import Project, toolkit
from toolkit import healthcheck

pytestmark = pytest.mark.integration


def test_each_container_of_a_graph_boots_becomes_healthy_and_answers(tmp_path: Path) -> None:
    project = Project(tmp_path)
    path = project.write('leaf: {class: "classes:Leaf"}\nentry: {class: "classes:Caller", port: PORT}')
    done = toolkit("export", "compose", str(path), "-o", str(tmp_path / "out"), folder=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"wrote {tmp_path}/out/docker-compose.yml\n")
    services = yaml.safe_load((tmp_path / "out" / "docker-compose.yml").read_text())["services"]
    assert services["leaf"]["command"] == ["python", "-m", "toolkit.replica"]
    leaf, entry = (services[name]["environment"] for name in ("leaf", "entry"))
    here = json.dumps(["127.0.0.1:0"])
    with alone(leaf["TOOLKIT_SERVICE"], folder=tmp_path, env={**leaf, "TOOLKIT_LISTEN": here}) as callee:
        (address,) = callee.wait_ready()
        assert healthy(address)
        found = json.dumps({"leaf": [f"dns:///{address.replace('127.0.0.1', 'localhost')}"]})
        env = {**entry, "TOOLKIT_LISTEN": here, "TOOLKIT_ADDRESSES": found}
        with alone(entry["TOOLKIT_SERVICE"], folder=tmp_path, env=env) as caller:
            (target,) = caller.wait_ready()
            assert healthy(target)
            called = toolkit("call", "Say", '{"text": "hi"}', "--target", target, folder=tmp_path)
            assert json.loads(called.stdout)["text"] == "hi"


def healthy(address: str) -> bool:
    command = [sys.executable, "-S", "-E", healthcheck.__file__, address]
    return subprocess.run(command, check=False).returncode == 0


def test_what_cannot_be_exported_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    path = Project(tmp_path).write('entry: {class: "classes:Leaf", port: PORT}')
    done = toolkit("export", "swarm", str(path), "-o", str(tmp_path / "out"), folder=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "Swarm opens a port on every machine" in done.stderr
    assert not (tmp_path / "out").exists()
