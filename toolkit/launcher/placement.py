"""(graph, machine) → plan: which replica gets which device and how many threads. Pure; refuses what does not fit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle

from toolkit.errors import PlacementError
from toolkit.launcher.devices import Machine
from toolkit.launcher.manifest import Deployment, Graph

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One replica, and what it got."""

    deployment: str
    index: int
    name: str
    """What logs call it: `gpt2`, or `gpt2.1` when it is one of several."""
    device: str
    """As the replica's torch names it: `cpu`, or `cuda:0`, for it sees no other GPU."""
    gpu: str | None = None
    """UUID."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Every variable that is set for it, the `env` of the graph file included."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Variable → why."""


def place(graph: Graph, machine: Machine) -> tuple[Placed, ...]:
    """The replicas of a graph, in the order of its file. Raises PlacementError: a line for each that does not fit."""
    problems = [
        f"{graph.where('services', name, 'device')}: {problem}"
        for name, deployment in graph.services.items()
        if (problem := _find_misfit(deployment, machine))
    ]
    if problems:
        raise PlacementError("\n".join(problems))
    turns = cycle(machine.gpus)
    total = sum(deployment.replicas.min for deployment in graph.services.values())
    return tuple(
        _place_one(name, deployment, index, _pick_gpu(deployment, machine, turns), _share(deployment, machine, total))
        for name, deployment in graph.services.items()
        for index in range(deployment.replicas.min)
    )


def _find_misfit(deployment: Deployment, machine: Machine) -> str | None:
    device, count = deployment.device, len(machine.gpus)
    if not device.startswith("cuda"):
        return None
    if not count:
        return f"{device} asks for an NVIDIA GPU and this machine shows none; say auto or cpu"
    if (_index(device) or 0) >= count:
        last = "cuda:0 alone" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        return f"{device} is not on this machine, which has {last}; name one of them, or say cuda for any"
    return None


def _index(device: str) -> int | None:
    _, colon, index = device.partition(":")
    return int(index) if colon else None


def _pick_gpu(deployment: Deployment, machine: Machine, turns: Iterator[str]) -> str | None:
    """The one that it names, else the next in turn; None is the CPU."""
    if deployment.device == "cpu":
        return None
    index = _index(deployment.device)
    return next(turns, None) if index is None else machine.gpus[index]


def _share(deployment: Deployment, machine: Machine, replicas: int) -> tuple[int, str]:
    """Threads of a replica, and why so many."""
    cpus = deployment.resources.cpus
    if cpus is None:
        return max(1, machine.cores // replicas), f"its share of {machine.cores} cores"
    if cpus > machine.cores:
        return machine.cores, f"resources.cpus asks for {cpus:g}, this machine has {machine.cores}"
    return max(1, int(cpus)), "resources.cpus"


def _place_one(name: str, deployment: Deployment, index: int, gpu: str | None, share: tuple[int, str]) -> Placed:
    found = dict(_variables(gpu, *share))
    found |= {variable: (value, "env of the graph file") for variable, value in deployment.env.items()}
    return Placed(
        deployment=name,
        index=index,
        name=name if deployment.replicas.max == 1 else f"{name}.{index}",
        device="cpu" if gpu is None else "cuda:0",
        gpu=gpu,
        env={variable: value for variable, (value, _) in found.items()},
        reasons={variable: reason for variable, (_, reason) in found.items()},
    )


def _variables(gpu: str | None, threads: int, why: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Variable, value, reason. They must stand before torch is imported; later changes are ignored."""
    if gpu is None:
        yield "CUDA_VISIBLE_DEVICES", ("", "on the CPU")
    else:
        yield "CUDA_VISIBLE_DEVICES", (gpu, "its GPU")
        yield "CUDA_DEVICE_ORDER", ("PCI_BUS_ID", "its GPU")
    for variable in _THREAD_VARIABLES:
        yield variable, (str(threads), why)
    yield "TOKENIZERS_PARALLELISM", ("false", why)
    yield "PYTHONUNBUFFERED", ("1", "logs arrive at once")


def describe(placed: Placed) -> str:
    """`cpu; CUDA_VISIBLE_DEVICES= (on the CPU) OMP_NUM_THREADS=1 … (its share of 2 cores)`: all that is set, and why."""
    groups: dict[str, list[str]] = {}
    for variable, value in placed.env.items():
        groups.setdefault(placed.reasons[variable], []).append(f"{variable}={shlex.quote(value) if value else ''}")
    said = ", ".join(f"{' '.join(variables)} ({reason})" for reason, variables in groups.items())
    return f"{placed.gpu or 'cpu'}: {said}, TOOLKIT_* (its specification)"
