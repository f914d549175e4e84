"""What a machine has to run on, as plain values: cores, memory and GPUs. Nothing is asked here; `inventory` does that."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from toolkit.launcher.manifest import parse_size

MIB = 1 << 20
RESERVE = 512 * MIB
"""Of each GPU, never handed out: contexts and libraries live beside what a model allocates."""
MAX_FAKE_GPUS = 64
_FAKE = re.compile(r"([1-9][0-9]{0,3})x(.+)", re.ASCII)


class Kind(Enum):
    """Whose GPU it is."""

    CUDA = "cuda"
    ROCM = "rocm"
    """torch calls it `cuda:0` too."""
    MPS = "mps"


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """A process that is no replica of ours, on a GPU."""

    pid: int
    command: str = ""
    memory: int | None = None
    """Bytes, where the driver tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One GPU, or one MIG device of it."""

    kind: Kind = Kind.CUDA
    id: str
    """As its variable takes it: a UUID (`GPU-…`, `MIG-…`) for CUDA, as an index may move; an index for ROCm; `mps`."""
    name: str = ""
    total: int
    """Bytes."""
    free: int
    """Bytes, as the driver tells it."""
    holders: tuple[Holder, ...] = ()

    @property
    def room(self) -> int:
        """Bytes that may be handed out."""
        return max(0, self.free - RESERVE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What placement may hand out."""

    cores: tuple[int, ...]
    """The numbers of those that this process may run on."""
    quota: float | None = None
    """Cores' worth of time that its cgroup gets, where that is limited."""
    memory: int | None = None
    """Bytes: of the machine, or of the cgroup where that gets less. None: nobody tells."""
    devices: tuple[Device, ...] = ()
    """CUDA devices in the order of the PCI bus: `cuda:1` is the second."""
    notes: tuple[str, ...] = ()
    """What could not be found out, and how it could."""

    @property
    def cpus(self) -> float:
        """Cores' worth of time."""
        return float(len(self.cores)) if self.quota is None else min(float(len(self.cores)), self.quota)

    def label(self, at: int) -> str:
        """`cuda:1 GPU-… (NVIDIA L4)`: the device in that place."""
        device = self.devices[at]
        index = sum(each.kind is device.kind for each in self.devices[:at])
        name = "mps" if device.kind is Kind.MPS else f"cuda:{index} {device.id}"
        return f"{name} ({device.name})" if device.name else name


def visible(ids: Sequence[str], wanted: str | None) -> tuple[int, ...]:
    """Positions of those that a `CUDA_VISIBLE_DEVICES` of `wanted` shows, in its order; as CUDA does, the first unknown one
    ends it."""
    if wanted is None:
        return tuple(range(len(ids)))
    found: list[int] = []
    for part in filter(None, (each.strip() for each in wanted.split(","))):
        match = [at for at, each in enumerate(ids) if (at == int(part) if part.isdecimal() else each.startswith(part))]
        if len(match) != 1 or match[0] in found:
            break
        found.append(match[0])
    return tuple(found)


def parse_fake_gpus(text: str) -> tuple[Device, ...]:
    """`2x24GiB`, `1x80GiB,2x24GiB` → so many GPUs that are not there. Raises ValueError."""
    found: list[Device] = []
    for part in text.split(","):
        match = _FAKE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"must be COUNTxSIZE, such as 2x24GiB or 1x80GiB,2x24GiB, not {text!r}")
        count, size = int(match[1]), parse_size(match[2])
        if len(found) + count > MAX_FAKE_GPUS:
            raise ValueError(f"must be {MAX_FAKE_GPUS} at most, not {text!r}")
        found += [
            Device(id=f"GPU-fake-{len(found) + at}", name=f"fake {match[2]}", total=size, free=size)
            for at in range(count)
        ]
    return tuple(found)
