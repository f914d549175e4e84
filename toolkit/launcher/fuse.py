"""Replicas of several deployments → one process with all of them. Pure. Most processes have one, and are what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.launcher.manifest import Graph
from toolkit.launcher.placement import THREAD_VARIABLES, VISIBLE_VARIABLES, Placed
from toolkit.spec import ReplicaSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Fused:
    """One process, and what it got."""

    whole: Placed
    """As one, named by its unit. It sees the GPUs of all, and has the threads, the cores and the memory of all."""
    members: tuple[Placed, ...]
    """The first speaks for it. Their devices are named as the process names them, which sees more GPUs than each alone would."""

    def spec(self, specs: Sequence[ReplicaSpec]) -> ReplicaSpec:
        """Of the process, from those of its members."""
        first, *others = (replace(spec, device=each.device) for spec, each in zip(specs, self.members, strict=True))
        return replace(first, companions=tuple(others), cores=self.whole.cores, memory=self.whole.memory)


def fuse_all(graph: Graph, placed: Sequence[Placed]) -> list[Fused]:
    """The processes of a graph."""
    found = {(each.deployment, each.index): each for each in placed}
    return [
        fuse(graph, unit.name, [found[member, index] for member in unit.members])
        for unit in graph.units.values()
        for index in sorted(each.index for each in placed if each.deployment == next(iter(unit.members)))
    ]


def fuse(graph: Graph, name: str, placed: Sequence[Placed]) -> Fused:
    """One process of these replicas. Their `env` is one: `manifest.find_conflicts` says where it is not."""
    first = placed[0]
    gpus = tuple(dict.fromkeys(each.gpu for each in placed if each.gpu is not None))
    members = tuple(replace(each, device=_device(each, gpus)) for each in placed)
    if len(placed) == 1:
        return Fused(whole=first, members=members)
    whole = Placed(
        deployment=name,
        index=first.index,
        name=name + first.name.removeprefix(first.deployment),
        device=", ".join(dict.fromkeys(each.device for each in members)),
        cores=_cores(placed),
        memory=None if any(each.memory is None for each in placed) else sum(each.memory or 0 for each in placed),
        summary=f"one process: {', '.join(f'{each.deployment} ({each.summary})' for each in placed)}",
        is_fallback=any(each.is_fallback for each in placed),
        env=_environment(graph, placed, gpus),
        reasons=_reasons(placed),
    )
    return Fused(whole=whole, members=members)


def _device(placed: Placed, gpus: Sequence[str]) -> str:
    return placed.device if placed.gpu is None or placed.device == "mps" else f"cuda:{gpus.index(placed.gpu)}"


def _cores(placed: Sequence[Placed]) -> tuple[int, ...]:
    if any(not each.cores for each in placed):
        return ()
    return tuple(sorted({core for each in placed for core in each.cores}))


def _environment(graph: Graph, placed: Sequence[Placed], gpus: Sequence[str]) -> dict[str, str]:
    own = {variable: value for each in placed for variable, value in graph.services[each.deployment].env.items()}
    found: dict[str, str] = {}
    for variable, value in (pair for each in placed for pair in each.env.items()):
        if variable in THREAD_VARIABLES and variable not in own:
            found[variable] = str(int(found.get(variable, "0")) + int(value))
        elif variable in VISIBLE_VARIABLES and gpus:
            found[variable] = ",".join(gpus)
        else:
            found.setdefault(variable, value)
    return {**found, **own}


def _reasons(placed: Sequence[Placed]) -> Mapping[str, str]:
    """Of each variable, by all who have one."""
    found: dict[str, dict[str, None]] = {}
    for variable, reason in (pair for each in placed for pair in each.reasons.items()):
        found.setdefault(variable, {})[reason] = None
    return {
        variable: ("sum of " if variable in THREAD_VARIABLES else "") + " and ".join(reasons)
        for variable, reasons in found.items()
    }
