"""(graph, machine) → plan: which replica gets which device, cores and memory, and how many threads. Pure; refuses what does
not fit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from toolkit.errors import PlacementError
from toolkit.launcher.cores import Share, share_cores, show_cores
from toolkit.launcher.devices import Device, Kind, Machine
from toolkit.launcher.fit import Demand, Place, fit
from toolkit.launcher.manifest import Deployment, Graph
from toolkit.launcher.refusals import Held, Wanted, refuse_cpus, refuse_gpu, refuse_memory
from toolkit.launcher.sizes import show_size

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
VISIBLE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One replica, and what it got."""

    deployment: str
    index: int
    name: str
    """What logs call it: `gpt2`, or `gpt2.1` when it is one of several."""
    device: str
    """As the replica's torch names it: `cpu`, `mps`, or `cuda:0`, for it sees no other GPU."""
    gpu: str | None = None
    """The id of its device."""
    cores: tuple[int, ...] = ()
    """Those that it runs on; empty: all."""
    memory: int | None = None
    """Bytes that it may take."""
    summary: str = "cpu"
    """`cuda:1 GPU-… (NVIDIA L4), 6GiB of 21.5GiB`, or why it is on the CPU."""
    is_fallback: bool = False
    """It is on the CPU because no GPU had what it asked for."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Every variable that is set for it, the `env` of the graph file included."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Variable → why."""


def place(
    graph: Graph, machine: Machine, *, counts: Mapping[str, int] | None = None, kept: Sequence[Placed] = ()
) -> tuple[Placed, ...]:
    """The replicas of a graph, in the order of its file; of each deployment as many as `counts` says, else its least.

    Those who are `kept` run already, and stay as they are; `machine` is as it was before they started. Raises
    PlacementError, which says for each deployment that does not fit what it asks for, what is free, who holds it, and the cures.
    """
    wanted = list(_list_wanted(graph, counts or {}, {(each.deployment, each.index) for each in kept}))
    spots, refusals = _choose_devices(graph, machine, wanted, kept)
    refusals += refuse_memory(graph, machine, wanted, sum(each.memory or 0 for each in kept))
    refusals += refuse_cpus(graph, machine, wanted)
    if refusals:
        raise PlacementError("\n".join(refusals))
    taken = {core for each in kept if graph.services[each.deployment].resources.cpus for core in each.cores}
    shares = share_cores([each.said.resources.cpus for each in wanted], machine, taken)
    new = {
        (each.deployment, each.index): _place_one(each, spot, share, machine)
        for each, spot, share in zip(wanted, spots, shares, strict=True)
    }
    all_of_them = {**{(each.deployment, each.index): each for each in kept}, **new}
    order = list(graph.services)
    return tuple(all_of_them[key] for key in sorted(all_of_them, key=lambda key: (order.index(key[0]), key[1])))


def _list_wanted(graph: Graph, counts: Mapping[str, int], kept: set[tuple[str, int]]) -> Iterator[Wanted]:
    for name, said in graph.services.items():
        for index in range(counts.get(name, said.replicas.min)):
            if (name, index) not in kept:
                yield Wanted(name, index, name if said.replicas.max == 1 else f"{name}.{index}", said)


@dataclass(frozen=True, slots=True)
class _Spot:
    """A device, or the CPU and why."""

    at: int | None = None
    why: str = ""
    is_fallback: bool = False


def _choose_devices(
    graph: Graph, machine: Machine, wanted: Sequence[Wanted], kept: Sequence[Placed]
) -> tuple[list[_Spot], list[str]]:
    """A spot for each, and a refusal for each deployment that gets none. Those who may take the CPU choose last."""
    places = [Place(room=device.room, is_idle=not device.holders) for device in machine.devices]
    positions = {device.id: at for at, device in enumerate(machine.devices)}
    among = [find_devices(each.said.device, machine) for each in wanted]
    held = [
        Held(each.name, each.deployment, positions[each.gpu], graph.services[each.deployment])
        for each in kept
        if each.gpu in positions
    ]
    chosen: dict[int, int] = {}
    for may_use_cpu in (False, True):
        asking = [
            at for at, each in enumerate(wanted) if among[at] and (each.said.on_unsatisfiable == "cpu") is may_use_cpu
        ]
        demands = [_demand(wanted[at].deployment, wanted[at].said, among[at]) for at in asking]
        settled = [(_demand(each.deployment, each.said, (each.at,)), each.at) for each in held]
        found = zip(asking, fit(demands, places, settled), strict=True)
        chosen |= {at: place for at, place in found if place is not None}
        held += [
            Held(wanted[at].name, wanted[at].deployment, chosen[at], wanted[at].said) for at in asking if at in chosen
        ]
    spots: list[_Spot] = []
    refusals: dict[str, str] = {}
    for at, each in enumerate(wanted):
        spot = _spot(each, machine, chosen.get(at))
        if spot is None:
            refusals.setdefault(each.deployment, refuse_gpu(graph, machine, each, among[at], held))
        else:
            spots.append(spot)
    return spots, list(refusals.values())


def find_devices(device: str, machine: Machine) -> tuple[int, ...]:
    """The positions of the devices that a `device` of the graph file may mean. A UUID may be cut short, as CUDA takes it."""
    kinds = {"auto": tuple(Kind), "mps": (Kind.MPS,)}.get(device, (Kind.CUDA, Kind.ROCM))
    found = tuple(at for at, each in enumerate(machine.devices) if each.kind in kinds)
    if device == "cpu":
        return ()
    if device.startswith("cuda:"):
        index = int(device.removeprefix("cuda:"))
        return found[index : index + 1]
    if device.startswith(("GPU-", "MIG-")):
        named = tuple(at for at in found if machine.devices[at].id.startswith(device))
        return named if len(named) == 1 else ()
    return found


def _demand(deployment: str, said: Deployment, among: tuple[int, ...]) -> Demand:
    resources = said.resources
    return Demand(group=deployment, size=resources.gpu_memory or 0, is_exclusive=resources.exclusive, among=among)


def _spot(wanted: Wanted, machine: Machine, chosen: int | None) -> _Spot | None:
    """None: it is refused."""
    device = wanted.said.device
    if chosen is not None:
        return _Spot(at=chosen)
    if device == "cpu":
        return _Spot(why="cpu")
    if device == "auto" and not machine.devices:
        return _Spot(why="cpu (auto: this machine shows no GPU)")
    if wanted.said.on_unsatisfiable == "cpu":
        return _Spot(why=f"cpu(!), as on_unsatisfiable says: no GPU {wanted.asked}", is_fallback=True)
    return None


def _place_one(wanted: Wanted, spot: _Spot, share: Share, machine: Machine) -> Placed:
    said, gpu = wanted.said, None if spot.at is None else machine.devices[spot.at]
    found = dict(_variables(gpu, share, machine))
    found |= {variable: (value, "env of the graph file") for variable, value in said.env.items()}
    return Placed(
        deployment=wanted.deployment,
        index=wanted.index,
        name=wanted.name,
        device=_name_for_torch(gpu),
        gpu=None if gpu is None else gpu.id,
        cores=share.cores,
        memory=said.resources.memory,
        summary=spot.why if spot.at is None else _summarize(said, machine, spot.at),
        is_fallback=spot.is_fallback,
        env={variable: value for variable, (value, _) in found.items()},
        reasons={variable: reason for variable, (_, reason) in found.items()},
    )


def _name_for_torch(gpu: Device | None) -> str:
    if gpu is None:
        return "cpu"
    return "mps" if gpu.kind is Kind.MPS else "cuda:0"


def _summarize(said: Deployment, machine: Machine, at: int) -> str:
    device, size = machine.devices[at], said.resources.gpu_memory
    part = "memory not counted" if size is None else f"{show_size(size)} of {show_size(device.room)}"
    return f"{machine.label(at)}, {part}{', alone' if said.resources.exclusive else ''}"


def _variables(gpu: Device | None, share: Share, machine: Machine) -> Iterator[tuple[str, tuple[str, str]]]:
    """Variable, value, reason. They must stand before torch is imported; later changes are ignored."""
    if gpu is None:
        yield "CUDA_VISIBLE_DEVICES", ("", "on the CPU")
        if any(device.kind is Kind.ROCM for device in machine.devices):
            yield "HIP_VISIBLE_DEVICES", ("-1", "on the CPU")
    elif gpu.kind is Kind.ROCM:
        yield "HIP_VISIBLE_DEVICES", (gpu.id, "its GPU")
        yield "CUDA_VISIBLE_DEVICES", (gpu.id, "its GPU")
    elif gpu.kind is Kind.CUDA:
        yield "CUDA_VISIBLE_DEVICES", (gpu.id, "its GPU")
        yield "CUDA_DEVICE_ORDER", ("PCI_BUS_ID", "its GPU")
    for variable in THREAD_VARIABLES:
        yield variable, (str(share.threads), share.why)
    yield "TOKENIZERS_PARALLELISM", ("false", share.why)
    yield "PYTHONUNBUFFERED", ("1", "logs arrive at once")


def describe(placed: Placed) -> str:
    """`cpu, cores 0-1: CUDA_VISIBLE_DEVICES= (on the CPU), OMP_NUM_THREADS=2 … (resources.cpus)`: all that is set, and why."""
    groups: dict[str, list[str]] = {}
    for variable, value in placed.env.items():
        groups.setdefault(placed.reasons[variable], []).append(f"{variable}={shlex.quote(value) if value else ''}")
    said = ", ".join(f"{' '.join(variables)} ({reason})" for reason, variables in groups.items())
    got = [
        placed.summary,
        *([f"cores {show_cores(placed.cores)}"] if placed.cores else []),
        *([f"memory {show_size(placed.memory)}"] if placed.memory is not None else []),
    ]
    return f"{', '.join(got)}: {said}, TOOLKIT_* (its specification)"


def describe_machine(machine: Machine) -> Iterator[str]:
    """What there is to hand out, a line each."""
    cores = f"cores {show_cores(machine.cores)}"
    quota = "" if machine.quota is None else f" (its cgroup gets {machine.quota:g} cores' worth of time)"
    memory = "" if machine.memory is None else f", memory {show_size(machine.memory)}"
    yield f"machine: {cores}{quota}{memory}" + ("" if machine.devices else ", no GPU")
    for at, device in enumerate(machine.devices):
        held = "".join(f"; pid {each.pid} {each.command}".rstrip() for each in device.holders)
        yield f"machine: {machine.label(at)}, {show_size(device.room)} of {show_size(device.total)} to hand out{held}"
    yield from (f"machine: {note}" for note in machine.notes)
