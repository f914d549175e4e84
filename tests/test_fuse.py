"""Several deployments as one process: what it sees, and what cannot be."""

from __future__ import annotations

from pathlib import Path

from toolkit.launcher.devices import Machine
from toolkit.launcher.fuse import Fused, fuse, fuse_all
from toolkit.launcher.manifest import Graph, load_graph
from toolkit.launcher.placement import Placed, describe, place
from toolkit.spec import ReplicaSpec


def placed(name: str, *, gpu: str | None = None, threads: int = 1, cores: tuple[int, ...] = ()) -> Placed:
    env = {"CUDA_VISIBLE_DEVICES": gpu or "", "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return Placed(deployment=name, index=0, name=name, device="cuda:0" if gpu else "cpu", gpu=gpu, cores=cores, env=env)


def graph(folder: Path, *services: str, entry: str = "a") -> Graph:
    path = folder / "graph.yaml"
    lines = "".join(f"  {each}\n" for each in services or ('a: {class: "m:A"}', 'b: {class: "m:B"}'))
    path.write_text(f"name: g\nentry: {entry}\nservices:\n{lines}")
    return load_graph(path)


def fused(folder: Path, *replicas: Placed) -> Fused:
    return fuse(graph(folder), "both", replicas)


def specs(found: Fused) -> tuple[ReplicaSpec, ...]:
    spec = found.spec([ReplicaSpec(service="m:C", deployment=each.deployment) for each in found.members])
    return (spec, *spec.companions)


def test_it_has_the_gpus_the_threads_and_the_cores_of_all(tmp_path: Path) -> None:
    found = fused(
        tmp_path,
        placed("a", gpu="GPU-2", threads=2, cores=(0, 1)),
        placed("b", gpu="GPU-1", threads=3, cores=(2,)),
    )
    assert found.whole.env["CUDA_VISIBLE_DEVICES"] == "GPU-2,GPU-1"
    assert found.whole.env["OMP_NUM_THREADS"] == "5"
    assert specs(found)[0].cores == (0, 1, 2)
    assert [each.device for each in specs(found)] == ["cuda:0", "cuda:1"]


def test_a_gpu_is_shared_and_the_cpu_stays_the_cpu(tmp_path: Path) -> None:
    found = fused(tmp_path, placed("b"), placed("a", gpu="GPU-1", cores=(1,)))
    assert [each.device for each in specs(found)] == ["cpu", "cuda:0"]
    assert (found.whole.env["CUDA_VISIBLE_DEVICES"], specs(found)[0].cores) == ("GPU-1", ())


def test_a_deployment_alone_is_its_process(tmp_path: Path) -> None:
    one = placed("a", gpu="GPU-1", threads=2)
    found = fuse(graph(tmp_path), "a", [one])
    assert (found.whole, found.members) == (one, (one,))
    assert specs(found)[0].companions == ()


def test_each_process_of_a_graph_has_a_replica_of_each_member_the_entry_first(tmp_path: Path) -> None:
    services = (
        'a: {class: "m:A", process: front, replicas: 2, device: cpu, resources: {memory: 1GiB, cpus: 1}}',
        'b: {class: "m:B"}',
        'c: {class: "m:C", process: front, replicas: 2, device: cpu, resources: {memory: 2GiB, cpus: 2}}',
        'd: {class: "m:D", process: rear}',
        'e: {class: "m:E", process: rear}',
    )
    found = graph(tmp_path, *services, entry="e")
    machine = Machine(cores=tuple(range(8)), memory=1 << 40)
    processes = {each.whole.name: each for each in fuse_all(found, place(found, machine))}
    assert list(processes) == ["front.0", "front.1", "b", "rear"]
    assert [[(one.deployment, one.index) for one in each.members] for each in processes.values()] == [
        [("a", 0), ("c", 0)], [("a", 1), ("c", 1)], [("b", 0)], [("e", 0), ("d", 0)]
    ]  # fmt: skip
    front = processes["front.1"].whole
    assert (front.memory, len(front.cores), front.env["OMP_NUM_THREADS"]) == (3 << 30, 3, "3")
    said = (
        "one process: a (cpu), c (cpu), cores 1,4-5, memory 3GiB: CUDA_VISIBLE_DEVICES= (on the CPU), OMP_NUM_THREADS=3"
    )
    assert describe(front).startswith(said)
    assert "(sum of resources.cpus)" in describe(front)


def test_it_goes_through_the_environment(tmp_path: Path) -> None:
    spec = specs(fused(tmp_path, placed("a"), placed("b")))[0]
    assert ReplicaSpec.from_environ(spec.to_environ()) == spec
