"""Graph and machine → plan. Pure: every machine here is made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.errors import PlacementError
from toolkit.launcher.devices import RESERVE, Device, Holder, Kind, Machine, parse_fake_gpus
from toolkit.launcher.manifest import Graph, load_graph
from toolkit.launcher.placement import Placed, describe, describe_machine, place

GIB = 1 << 30


def graph_of(tmp_path: Path, **services: str) -> Graph:
    """A deployment a line, the first on line 4, the last the entry; each is `class` and what is given."""
    file = tmp_path / "graph.yaml"
    lines = [f'  {name}: {{class: "m:C"{", " if said else ""}{said}}}\n' for name, said in services.items()]
    file.write_text(f"name: g\nentry: {[*services][-1]}\nservices:\n{''.join(lines)}")
    return load_graph(file)


def machine(cores: int = 8, gpus: str = "", memory: int | None = None) -> Machine:
    return Machine(cores=tuple(range(cores)), memory=memory, devices=parse_fake_gpus(gpus) if gpus else ())


def gpus_of(placed: tuple[Placed, ...]) -> dict[str, str | None]:
    return {each.name: each.gpu and each.gpu.removeprefix("GPU-fake-") for each in placed}


def refusal(graph: Graph, there: Machine) -> list[str]:
    with pytest.raises(PlacementError) as caught:
        place(graph, there)
    return str(caught.value).removeprefix(f"{graph.path.parent}/").splitlines()


def test_auto_takes_gpus_by_turns_and_cpu_stays(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, gpt2="replicas: 2", small="device: cpu", scorer="", graph="")
    placed = place(graph, machine(gpus="2x24GiB"))
    assert gpus_of(placed) == {"gpt2.0": "0", "gpt2.1": "1", "small": None, "scorer": "0", "graph": "1"}
    assert placed[1].device == "cuda:0"
    assert placed[1].env["CUDA_VISIBLE_DEVICES"] == "GPU-fake-1"
    assert placed[2].env["CUDA_VISIBLE_DEVICES"] == ""


def test_without_gpus_auto_is_the_cpu_and_says_so(tmp_path: Path) -> None:
    (placed,) = place(graph_of(tmp_path, a="resources: {gpu_memory: 1GiB}"), machine())
    assert (placed.device, placed.env["CUDA_VISIBLE_DEVICES"], placed.is_fallback) == ("cpu", "", False)
    assert describe(placed).startswith("cpu (auto: this machine shows no GPU): ")


def test_a_replicas_least_number_is_placed(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, b="replicas: 2", c="replicas: {min: 1, max: 3}", a="")
    assert [each.name for each in place(graph, machine())] == ["b.0", "b.1", "c.0", "a"]
    assert [each.name for each in place(graph, machine(), counts={"c": 2})] == ["b.0", "b.1", "c.0", "c.1", "a"]


def test_memory_is_handed_out_once(tmp_path: Path) -> None:
    graph = graph_of(
        tmp_path,
        big="resources: {gpu_memory: 20GiB}",
        small="replicas: 2, resources: {gpu_memory: 3GiB}",
        graph="device: cpu",
    )
    assert gpus_of(place(graph, machine(gpus="2x24GiB"))) == {
        "big": "0",
        "small.0": "0",
        "small.1": "1",
        "graph": None,
    }


def test_an_exclusive_gpu_is_shared_with_nobody(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, a="", own="resources: {exclusive: true}", b="")
    placed = place(graph, machine(gpus="2x24GiB"))
    assert gpus_of(placed) == {"a": "1", "own": "0", "b": "1"}
    assert "memory not counted, alone" in describe(placed[1])


def test_a_gpu_that_somebody_else_uses_is_not_exclusive(tmp_path: Path) -> None:
    used = Device(id="GPU-a", total=24 * GIB, free=20 * GIB, holders=(Holder(pid=7, command="python", memory=4 * GIB),))
    there = Machine(cores=(0,), devices=(used, Device(id="GPU-b", total=24 * GIB, free=24 * GIB)))
    assert place(graph_of(tmp_path, a="resources: {exclusive: true}"), there)[0].gpu == "GPU-b"
    assert place(graph_of(tmp_path, a="resources: {gpu_memory: 19GiB}"), there)[0].gpu == "GPU-a"


@pytest.mark.parametrize("device", ["cuda:1", "GPU-b222", "GPU-b"])
def test_a_named_gpu_is_given(tmp_path: Path, device: str) -> None:
    there = Machine(
        cores=(0,), devices=tuple(Device(id=each, total=GIB, free=GIB) for each in ("GPU-a111", "GPU-b222"))
    )
    (placed,) = place(graph_of(tmp_path, a=f'device: "{device}"'), there)
    assert (placed.device, placed.env["CUDA_VISIBLE_DEVICES"]) == ("cuda:0", "GPU-b222")


def test_a_mig_device_is_named_by_its_uuid(tmp_path: Path) -> None:
    there = Machine(cores=(0,), devices=(Device(id="MIG-aa/1/0", total=10 * GIB, free=10 * GIB),))
    (placed,) = place(graph_of(tmp_path, a="device: MIG-aa/1/0, resources: {gpu_memory: 9GiB}"), there)
    assert placed.env["CUDA_VISIBLE_DEVICES"] == "MIG-aa/1/0"


def test_rocm_is_what_torch_calls_cuda(tmp_path: Path) -> None:
    there = Machine(cores=(0,), devices=(Device(kind=Kind.ROCM, id="3", name="AMD", total=GIB, free=GIB),))
    on_gpu, on_cpu = place(graph_of(tmp_path, a='device: "cuda:0"', b="device: cpu"), there)
    assert (on_gpu.device, on_gpu.env["HIP_VISIBLE_DEVICES"], on_gpu.env["CUDA_VISIBLE_DEVICES"]) == (
        "cuda:0",
        "3",
        "3",
    )
    assert (on_cpu.env["HIP_VISIBLE_DEVICES"], on_cpu.env["CUDA_VISIBLE_DEVICES"]) == ("-1", "")


def test_mps_has_one_device_and_no_variable(tmp_path: Path) -> None:
    there = Machine(cores=(0,), devices=(Device(kind=Kind.MPS, id="mps", total=16 * GIB, free=16 * GIB),))
    placed = place(graph_of(tmp_path, a="device: mps", b="", c="device: cpu"), there)
    assert [each.device for each in placed] == ["mps", "mps", "cpu"]
    assert "CUDA_VISIBLE_DEVICES" not in placed[0].env


# What does not fit


def test_too_little_gpu_memory_is_refused_with_all_that_one_needs_to_know(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, big="replicas: 2, resources: {gpu_memory: 20GiB}", small="resources: {gpu_memory: 3GiB}")
    assert refusal(graph, machine(gpus="1x24GiB,1x10GiB")) == [
        "graph.yaml:4: services.big.resources.gpu_memory: big.1 wants auto, and no GPU has 20GiB free",
        "  cuda:0 GPU-fake-0 (fake 24GiB): 512MiB free of 24GiB; held by big.0 (20GiB), small (3GiB)",
        "  cuda:1 GPU-fake-1 (fake 10GiB): 9.5GiB free of 10GiB; held by nobody",
        "  either lower services.big.replicas to 1; or say on_unsatisfiable: cpu, to let it run there",
    ]


def test_foreign_processes_are_named(tmp_path: Path) -> None:
    used = Device(id="GPU-a", total=24 * GIB, free=2 * GIB, holders=(Holder(pid=7, command="python", memory=22 * GIB),))
    there = Machine(cores=(0,), devices=(used,))
    first, *more = refusal(graph_of(tmp_path, a="device: cuda, resources: {gpu_memory: 8GiB}"), there)
    assert first.endswith("a wants cuda, and no GPU has 8GiB free")
    assert more[0] == "  cuda:0 GPU-a: 1.5GiB free of 24GiB; held by pid 7 python (22GiB)"
    assert more[1].startswith("  either lower services.a.resources.gpu_memory to 1.5GiB; or say on_unsatisfiable: cpu")
    exclusive = refusal(graph_of(tmp_path, a="device: cuda, resources: {exclusive: true}"), there)
    assert exclusive[0].endswith("services.a.resources.exclusive: a wants cuda, and no GPU is free of others")
    assert exclusive[2].startswith("  either end what is on it (pid 7); or")


def test_what_shares_no_gpu_finds_no_room_beside_an_exclusive_one(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, own="resources: {exclusive: true}", other="")
    assert refusal(graph, machine(gpus="1x24GiB")) == [
        "graph.yaml:5: services.other.device: other wants auto, and no GPU is shared",
        "  cuda:0 GPU-fake-0 (fake 24GiB): 23.5GiB free of 24GiB; held by own (not counted, exclusive)",
        "  either say services.other.device: cpu, if it needs no GPU; or say on_unsatisfiable: cpu, to let it run there",
    ]


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [
        ("cuda", "", "cuda asks for a GPU and this machine shows none; say auto or cpu"),
        ("mps", "", "mps asks for an Apple GPU and this machine shows none; say auto or cpu"),
        (
            "cuda:1",
            "1x1GiB",
            "cuda:1 is not on this machine, which has cuda:0 GPU-fake-0 (fake 1GiB); name one of them",
        ),
        ("GPU-b", "1x1GiB", "GPU-b is not on this machine, which has cuda:0 GPU-fake-0"),
        ("GPU-fake", "2x1GiB", "GPU-fake is not on this machine, which has cuda:0 GPU-fake-0 (fake 1GiB); cuda:1 GPU-"),
    ],
)
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, device: str, gpus: str, expected: str) -> None:
    (said,) = refusal(graph_of(tmp_path, a=f'device: "{device}"'), machine(gpus=gpus))
    assert said.startswith(f"graph.yaml:4: services.a.device: {expected}")


def test_why_no_gpu_was_found_is_told(tmp_path: Path) -> None:
    there = Machine(cores=(0,), notes=("NVML cannot be asked",))
    assert refusal(graph_of(tmp_path, a="device: cuda"), there)[1:] == ["  NVML cannot be asked"]
    assert list(describe_machine(there)) == ["machine: cores 0, no GPU", "machine: NVML cannot be asked"]


def test_every_deployment_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, a="device: cuda", b="resources: {cpus: 9}", c="resources: {memory: 3GiB}")
    said = [line for line in refusal(graph, machine(cores=8, memory=2 * GIB)) if not line.startswith("  ")]
    assert [line.partition(": services.")[2].partition(":")[0] for line in said] == [
        "a.device",
        "c.resources.memory",
        "b.resources.cpus",
    ]


def test_the_cpu_is_taken_only_where_the_file_says_so(tmp_path: Path) -> None:
    said = "resources: {gpu_memory: 20GiB}"
    graph = graph_of(tmp_path, first=f"on_unsatisfiable: cpu, device: cuda, {said}", second=f"device: cuda, {said}")
    first, second = place(graph, machine(gpus="1x24GiB"))
    assert (first.device, first.is_fallback, second.device) == ("cpu", True, "cuda:0")
    assert describe(first).startswith("cpu(!), as on_unsatisfiable says: no GPU has 20GiB free: CUDA_VISIBLE_DEVICES= ")


def test_memory_is_promised_once(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, a="resources: {memory: 3GiB}", b="replicas: 2, resources: {memory: 4GiB}", c="")
    assert [each.memory for each in place(graph, machine(memory=11 * GIB))] == [3 * GIB, 4 * GIB, 4 * GIB, None]
    assert refusal(graph, machine(memory=10 * GIB)) == [
        "graph.yaml:5: services.b.resources.memory: b.1 wants 4GiB, and 3GiB of this machine's 10GiB are left",
        "  held by a (3GiB), b.0 (4GiB)",
        "  either lower it to 3GiB or less; or lower the memory or the replicas of another",
    ]


def test_more_cores_than_there_are_is_refused(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, a="replicas: 2, resources: {cpus: 4}", b="resources: {cpus: 1}")
    assert [each.env["OMP_NUM_THREADS"] for each in place(graph, machine(cores=4))] == ["4", "4", "1"]
    assert refusal(graph, machine(cores=2)) == [
        "graph.yaml:4: services.a.resources.cpus: a wants 4 cores, and this machine has 2",
        "  either lower it to 2; or take it out, for a share of what there is",
    ]


# What is set


def test_the_files_env_wins_and_every_variable_has_its_reason(tmp_path: Path) -> None:
    (placed,) = place(graph_of(tmp_path, a='env: {OMP_NUM_THREADS: "7", MINE: "x y"}'), machine(cores=4))
    assert placed.env["OMP_NUM_THREADS"] == "7"
    said = describe(placed)
    assert all(f"{variable}=" in said for variable in placed.env)
    assert "OMP_NUM_THREADS=7 MINE='x y' (env of the graph file)" in said
    assert "MKL_NUM_THREADS=4" in said
    assert "its share of 4 cores" in said


def test_cores_threads_and_memory_are_shown(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, a="device: cpu, resources: {cpus: 2, memory: 512MiB}", b="")
    first, second = place(graph, machine(cores=8))
    assert describe(first).startswith("cpu, cores 0-1, memory 512MiB: ")
    assert (first.cores, second.cores, second.env["OMP_NUM_THREADS"]) == ((0, 1), (2, 3, 4, 5, 6, 7), "6")


def test_those_who_run_stay_where_they_are(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, a="replicas: {min: 1, max: 3}, resources: {gpu_memory: 6GiB, cpus: 1}", b="")
    there = machine(cores=4, gpus="2x8GiB")
    before = place(graph, there)
    after = place(graph, there, counts={"a": 2}, kept=before)
    assert [each.name for each in after] == ["a.0", "a.1", "b"]
    assert (after[0], after[2]) == before
    assert after[1].gpu != after[0].gpu
    assert not set(after[1].cores) & set(after[0].cores)
    with pytest.raises(PlacementError, match=r"a\.2 wants auto, and no GPU has 6GiB free"):
        place(graph, there, counts={"a": 3}, kept=after)


def test_the_machine_is_shown(tmp_path: Path) -> None:
    there = Machine(cores=tuple(range(8)), quota=2.5, memory=4 * GIB, devices=parse_fake_gpus("1x24GiB"))
    assert list(describe_machine(there)) == [
        "machine: cores 0-7 (its cgroup gets 2.5 cores' worth of time), memory 4GiB",
        "machine: cuda:0 GPU-fake-0 (fake 24GiB), 23.5GiB of 24GiB to hand out",
    ]


# Whatever the graph, whatever the machine

DEPLOYMENT = st.fixed_dictionaries(
    {"class": st.just("m:C"), "device": st.sampled_from(["auto", "cuda", "cuda:0", "cuda:1", "cpu"])},
    optional={
        "replicas": st.integers(1, 4),
        "on_unsatisfiable": st.sampled_from(["error", "cpu"]),
        "gpu": st.sampled_from(["1GiB", "6GiB", "11GiB", "30GiB"]),
        "exclusive": st.booleans(),
        "cpus": st.floats(0.5, 6),
        "memory": st.sampled_from(["1GiB", "3GiB"]),
    },
)


def written(said: dict[str, object]) -> dict[str, object]:
    names = {"gpu": "gpu_memory", "exclusive": "exclusive", "cpus": "cpus", "memory": "memory"}
    on_cpu = ("gpu", "exclusive") if said["device"] == "cpu" else ()
    resources = {names[key]: value for key, value in said.items() if key in names and key not in on_cpu}
    return {key: value for key, value in said.items() if key not in names} | {"resources": resources}


def place_or_refuse(graph: Graph, there: Machine) -> tuple[Placed, ...] | str:
    try:
        return place(graph, there)
    except PlacementError as error:
        return str(error)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(DEPLOYMENT, min_size=1, max_size=4),
    st.sampled_from(["", "1x8GiB", "2x12GiB", "1x24GiB,2x12GiB"]),
    st.sampled_from([1, 4, 8]),
    st.sampled_from([None, 4 * GIB]),
)
def test_every_replica_is_placed_within_what_there_is_or_a_refusal_says_why(
    tmp_path: Path, said: list[dict[str, object]], gpus: str, cores: int, memory: int | None
) -> None:
    services = {f"s{at}": written(each) for at, each in enumerate(said)}
    services["entry"] = {"class": "m:C"}
    file = tmp_path / "graph.yaml"
    file.write_text(yaml.safe_dump({"name": "g", "entry": "entry", "services": services}))
    graph, there = load_graph(file), machine(cores, gpus, memory)
    placed = place_or_refuse(graph, there)
    assert placed == place_or_refuse(graph, there)
    if isinstance(placed, str):
        heads = [line for line in placed.splitlines() if not line.startswith("  ")]
        assert all(head.startswith(f"{file}:") and ": services." in head for head in heads)
        return
    assert [each.deployment for each in placed] == [n for n, d in graph.services.items() for _ in range(d.replicas.min)]
    for device in there.devices:
        inside = [graph.services[each.deployment].resources for each in placed if each.gpu == device.id]
        assert sum(each.gpu_memory or 0 for each in inside) <= device.total - RESERVE
        assert len(inside) == 1 or not any(each.exclusive for each in inside)
    assert memory is None or sum(each.memory or 0 for each in placed) <= memory
    for each in placed:
        deployment = graph.services[each.deployment]
        on_cpu = each.device == "cpu"
        assert each.env["CUDA_VISIBLE_DEVICES"] == ("" if on_cpu else each.gpu)
        may_be = deployment.device == "cpu" or deployment.on_unsatisfiable == "cpu"
        assert not on_cpu or may_be or (deployment.device == "auto" and not there.devices)
        assert int(each.env["OMP_NUM_THREADS"]) <= cores
