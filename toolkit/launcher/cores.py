"""Who runs on which cores, with how many threads. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import ceil

from toolkit.launcher.devices import Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    threads: int
    why: str
    cores: tuple[int, ...] = ()
    """Empty: all."""


def share_cores(asked: Sequence[float | None], machine: Machine, taken: Collection[int] = ()) -> list[Share]:
    """A share for each; None asks for nothing in particular.

    What is asked for comes as cores of its own if there are enough for all who ask, and those who do not ask share the rest.
    If there are not, nobody is bound to any. Cores that are `taken` are others' already.
    """
    free = [core for core in machine.cores if core not in taken]
    left = machine.cpus - len(taken)
    total = sum(filter(None, asked))
    fits = total <= left and sum(ceil(each) for each in asked if each) <= len(free)
    if not fits:
        free, left = list(machine.cores), machine.cpus
    given = iter(free)
    own = [tuple(next(given) for _ in range(ceil(each))) if each and fits else () for each in asked]
    rest = tuple(given)
    is_bound = fits and bool(rest) and len(rest) < len(machine.cores)
    left = min(left - total, len(rest)) if is_bound else left
    unsaid = _unsaid(left, sum(each is None for each in asked), rest if is_bound else ())
    crowd = "" if fits else f", though {total:g} are asked for and there are {machine.cpus:g}"
    return [
        unsaid if each is None else Share(threads=max(1, int(each)), why=f"resources.cpus{crowd}", cores=cores)
        for each, cores in zip(asked, own, strict=True)
    ]


def _unsaid(cpus: float, count: int, cores: tuple[int, ...]) -> Share:
    """Of those who ask for nothing."""
    threads = max(1, int(cpus // max(1, count)))
    why = f"its share of {cpus:g} cores" if cpus >= 1 else "the others' resources.cpus leave no core"
    return Share(threads=threads, why=why, cores=cores)


def show_cores(cores: Sequence[int]) -> str:
    """`0-3,8`, as taskset(1) writes them."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
