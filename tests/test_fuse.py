"""Several deployments as one process: what it sees, and what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import GraphError
from toolkit.launcher.fuse import Fused, fuse
from toolkit.launcher.manifest import load_graph
from toolkit.launcher.placement import Placed
from toolkit.spec import ReplicaSpec


def placed(name: str, *, gpu: str | None = None, threads: int = 1, cores: tuple[int, ...] = ()) -> Placed:
    env = {"CUDA_VISIBLE_DEVICES": gpu or "", "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return Placed(deployment=name, index=0, name=name, device="cuda:0" if gpu else "cpu", gpu=gpu, cores=cores, env=env)


def fused(folder: Path, *replicas: Placed, services: str = 'a: {class: "m:A"}\n  b: {class: "m:B"}') -> Fused:
    path = folder / "graph.yaml"
    path.write_text(f"name: g\nentry: a\nservices:\n  {services}\n")
    specs = [ReplicaSpec(service=f"m:{each.deployment.upper()}", deployment=each.deployment) for each in replicas]
    return fuse(load_graph(path), replicas, specs)


def test_it_has_the_gpus_the_threads_and_the_cores_of_all(tmp_path: Path) -> None:
    found = fused(
        tmp_path,
        placed("a", gpu="GPU-2", threads=2, cores=(0, 1)),
        placed("b", gpu="GPU-1", threads=3, cores=(2,)),
    )
    assert found.env["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-1"
    assert found.env["OMP_NUM_THREADS"] == "5"
    assert found.spec.cores == (0, 1, 2)
    assert [each.device for each in (found.spec, *found.spec.companions)] == ["cuda:0", "cuda:1"]


def test_a_gpu_is_shared_and_the_cpu_stays_the_cpu(tmp_path: Path) -> None:
    found = fused(tmp_path, placed("b"), placed("a", gpu="GPU-1", cores=(1,)))
    assert (found.spec.device, found.spec.companions[0].device) == ("cpu", "cuda:0")
    assert (found.env["CUDA_VISIBLE_DEVICES"], found.spec.cores) == ("GPU-1", ())


def test_two_values_of_one_variable_are_refused(tmp_path: Path) -> None:
    services = 'a: {class: "m:A", env: {LEVEL: x, BOTH: y}}\n  b: {class: "m:B", env: {LEVEL: z, BOTH: y}}'
    with pytest.raises(GraphError) as caught:
        fused(tmp_path, placed("a"), placed("b"), services=services)
    expected = "graph.yaml:5: services.b.env.LEVEL: 'a' says another value, and they share one process"
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(expected)
    assert len(str(caught.value).splitlines()) == 1


def test_it_goes_through_the_environment(tmp_path: Path) -> None:
    spec = fused(tmp_path, placed("a"), placed("b")).spec
    assert ReplicaSpec.from_environ(spec.to_environ()) == spec
