"""What this machine has to run on: cores and NVIDIA GPUs. Nothing heavy is imported to find out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_LIST_TIMEOUT = 20.0
"""Seconds for `nvidia-smi -L`; the driver's first answer after a boot is slow."""
_UUID = re.compile(r"\(UUID: ((?:GPU|MIG)-[^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Machine:
    """What placement may hand out."""

    cores: int
    gpus: tuple[str, ...] = ()
    """UUIDs in the order of the PCI bus, as `CUDA_VISIBLE_DEVICES` takes them: an index may move, a UUID stays."""


def find_machine(environ: Mapping[str, str]) -> Machine:
    """Look at this machine. GPUs that `CUDA_VISIBLE_DEVICES` hides from the launcher stay hidden."""
    return Machine(_count_cores(), visible_gpus(_list_gpus(), environ.get("CUDA_VISIBLE_DEVICES")))


def visible_gpus(gpus: Sequence[str], wanted: str | None) -> tuple[str, ...]:
    """Those that a `CUDA_VISIBLE_DEVICES` of `wanted` shows, in its order; as CUDA does, the first unknown one ends it."""
    if wanted is None:
        return tuple(gpus)
    found: list[str] = []
    for part in filter(None, (each.strip() for each in wanted.split(","))):
        match = gpus[int(part) : int(part) + 1] if part.isdecimal() else [gpu for gpu in gpus if gpu.startswith(part)]
        if len(match) != 1 or match[0] in found:
            break
        found.append(match[0])
    return tuple(found)


def parse_gpu_list(text: str) -> tuple[str, ...]:
    """UUIDs out of `nvidia-smi -L`. A GPU that is cut into MIG devices counts as those devices."""
    found: list[str] = []
    for line in text.splitlines():
        match = _UUID.search(line)
        if match is None:
            continue
        if match[1].startswith("MIG-") and found and found[-1].startswith("GPU-"):
            found.pop()
        found.append(match[1])
    return tuple(found)


def _list_gpus() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        try:
            listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_LIST_TIMEOUT, check=True)
            return parse_gpu_list(listed.stdout)
        except (OSError, subprocess.SubprocessError):
            pass
    return _read_proc(Path("/proc/driver/nvidia/gpus"))


def _read_proc(folder: Path) -> tuple[str, ...]:
    """The driver's own list, one folder a PCI address, where `nvidia-smi` is missing."""
    found: list[str] = []
    for file in sorted(folder.glob("*/information")):
        match = re.search(r"^GPU UUID:\s*(GPU-[0-9a-fA-F-]+)", file.read_text(errors="replace"), re.MULTILINE)
        if match:
            found.append(match[1])
    return tuple(found)


def _count_cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota = parse_cpu_max(Path("/sys/fs/cgroup/cpu.max").read_text())
    except (OSError, ValueError):
        quota = None
    return usable if quota is None else max(1, min(usable, int(quota)))


def parse_cpu_max(text: str) -> float | None:
    """Cores of a cgroup's `cpu.max`, `200000 100000` → 2.0; None when it sets no limit."""
    quota, period = text.split()
    return None if quota == "max" else int(quota) / int(period)
