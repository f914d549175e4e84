"""What does not fit, said so that it can be put right: what was asked for, what is free, who holds it, and the cures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from toolkit.launcher.devices import Machine
from toolkit.launcher.manifest import Deployment, Graph
from toolkit.launcher.sizes import show_size

_FALL_BACK = "say on_unsatisfiable: cpu, to let it run there"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A replica that is to be placed."""

    deployment: str
    index: int
    name: str
    said: Deployment

    @property
    def asked(self) -> str:
        """`has 20GiB free`: what it wants of a GPU."""
        resources = self.said.resources
        if resources.gpu_memory is None:
            return "is free of others" if resources.exclusive else "is shared"
        return f"has {show_size(resources.gpu_memory)} free{' and is free of others' if resources.exclusive else ''}"


@dataclass(frozen=True, slots=True)
class Held:
    """A replica that has a place."""

    name: str
    deployment: str
    at: int
    """The position of its device."""
    said: Deployment

    @property
    def size(self) -> int:
        return self.said.resources.gpu_memory or 0


def refuse_gpu(graph: Graph, machine: Machine, wanted: Wanted, among: Sequence[int], held: Sequence[Held]) -> str:
    """Why no device takes it: a line that says so, one for each device that might have, one with the cures."""
    device = wanted.said.device
    if not among:
        where = graph.where("services", wanted.deployment, "device")
        return "\n".join([f"{where}: {_missing(device, machine)}", *(f"  {note}" for note in machine.notes)])
    key = "gpu_memory" if wanted.said.resources.gpu_memory is not None else "exclusive"
    is_said = wanted.said.resources.gpu_memory is not None or wanted.said.resources.exclusive
    where = graph.where("services", wanted.deployment, *(("resources", key) if is_said else ("device",)))
    return "\n".join(
        [
            f"{where}: {wanted.name} wants {device}, and no GPU {wanted.asked}",
            *(f"  {_occupancy(machine, at, held)}" for at in among),
            f"  either {_relief(graph, machine, wanted, among, held)}; or {_FALL_BACK}",
        ]
    )


def _missing(device: str, machine: Machine) -> str:
    count = len(machine.devices)
    if not count:
        kind = "an Apple GPU" if device == "mps" else "a GPU"
        return f"{device} asks for {kind} and this machine shows none; say auto or cpu"
    have = "; ".join(machine.label(at) for at in range(count))
    return f"{device} is not on this machine, which has {have}; name one of them, or say auto for any"


def _occupancy(machine: Machine, at: int, held: Sequence[Held]) -> str:
    """`cuda:0 GPU-… (NVIDIA L4): 1.5GiB free of 24GiB; held by gpt2.0 (20GiB), pid 4242 python (2GiB), 512MiB kept back`."""
    device = machine.devices[at]
    holders = [f"{each.name} ({_share(each.said)})" for each in held if each.at == at]
    holders += [
        f"pid {each.pid} {each.command} ({'?' if each.memory is None else show_size(each.memory)})".replace("  ", " ")
        for each in device.holders
    ]
    free = show_size(_free(machine, at, held))
    return f"{machine.label(at)}: {free} free of {show_size(device.total)}; held by {', '.join(holders) or 'nobody'}"


def _share(said: Deployment) -> str:
    size = said.resources.gpu_memory
    shown = "not counted" if size is None else show_size(size)
    return f"{shown}, exclusive" if said.resources.exclusive else shown


def _free(machine: Machine, at: int, held: Sequence[Held]) -> int:
    return machine.devices[at].room - sum(each.size for each in held if each.at == at)


def _relief(graph: Graph, machine: Machine, wanted: Wanted, among: Sequence[int], held: Sequence[Held]) -> str:
    """What to change in the file, or to end."""
    name, resources = wanted.deployment, wanted.said.resources
    if resources.gpu_memory is None and not resources.exclusive:
        return f"say services.{name}.device: cpu, if it needs no GPU"
    here = [each for each in held if each.at in among]
    placed = sum(each.deployment == name for each in here)
    if placed:
        return f"lower services.{name}.replicas to {placed}"
    taken = {each.at for each in here if each.said.resources.exclusive}
    most = max((_free(machine, at, held) for at in among if at not in taken), default=0)
    if resources.gpu_memory is not None and not resources.exclusive and most >= 1 << 20:
        return f"lower services.{name}.resources.gpu_memory to {show_size(most)}"
    if here:
        return f"say device: cpu for what needs no GPU ({', '.join(each.name for each in here)})"
    pids = [str(each.pid) for at in among for each in machine.devices[at].holders]
    if pids:
        return f"end what is on it (pid {', '.join(pids)})"
    return f"lower services.{name}.resources.gpu_memory"


def refuse_memory(graph: Graph, machine: Machine, wanted: Sequence[Wanted], kept: int) -> list[str]:
    """`resources.memory` is a promise: all of them together must be there."""
    if machine.memory is None:
        return []
    return list(_refuse_memory(graph, machine.memory, wanted, kept))


def _refuse_memory(graph: Graph, there: int, wanted: Sequence[Wanted], kept: int) -> Iterator[str]:
    left, held, refused = there - kept, ["what runs already"] if kept else [], set()
    for each in wanted:
        size = each.said.resources.memory
        if size is None or each.deployment in refused:
            continue
        if size <= left:
            left -= size
            held.append(f"{each.name} ({show_size(size)})")
            continue
        refused.add(each.deployment)
        where = graph.where("services", each.deployment, "resources", "memory")
        yield (
            f"{where}: {each.name} wants {show_size(size)}, and {show_size(max(0, left))} of this machine's "
            f"{show_size(there)} are left\n"
            f"  held by {', '.join(held) or 'nobody'}\n"
            f"  either lower it to {show_size(max(0, left))} or less; or lower the memory or the replicas of another"
        )


def refuse_cpus(graph: Graph, machine: Machine, wanted: Sequence[Wanted]) -> list[str]:
    """Cores can be shared, and are where all together ask for too many; but no replica can have more than there are."""
    return list(dict.fromkeys(_refuse_cpus(graph, machine, wanted)))


def _refuse_cpus(graph: Graph, machine: Machine, wanted: Sequence[Wanted]) -> Iterator[str]:
    for each in wanted:
        cpus = each.said.resources.cpus
        if cpus is not None and cpus > machine.cpus:
            where = graph.where("services", each.deployment, "resources", "cpus")
            yield (
                f"{where}: {each.deployment} wants {cpus:g} cores, and this machine has {machine.cpus:g}\n"
                f"  either lower it to {machine.cpus:g}; or take it out, for a share of what there is"
            )
