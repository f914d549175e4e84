"""Looks at this machine: its cores and memory as far as its cgroups give them, and its GPUs, which a short-lived process
is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.launcher.cgroups import read_allowance
from toolkit.launcher.devices import Device, Holder, Kind, Machine, visible

COMMAND = (sys.executable, "-m", "toolkit.probe")
_TIMEOUT = 120.0
"""Seconds; a driver's first answer after a boot is slow, and so is torch from a cold disk."""
_HINTS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""NVIDIA, Jetson, WSL, ROCm. Without any of them nobody is asked, and nothing is spent."""
_VISIBLE = {Kind.CUDA: ("CUDA_VISIBLE_DEVICES",), Kind.ROCM: ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")}
"""What hides GPUs of a kind; the first that is set counts."""


def find_machine(environ: Mapping[str, str], fake: Sequence[Device] | None = None) -> Machine:
    """What this machine has. GPUs that are hidden from the launcher stay hidden; `fake` stands for all of them."""
    allowance = read_allowance()
    sizes = [size for size in (allowance.memory, _memory()) if size is not None]
    devices, notes = (tuple(fake), ()) if fake is not None else _find_devices(environ)
    return Machine(cores=_cores(), quota=allowance.cpus, memory=min(sizes, default=None), devices=devices, notes=notes)


def _cores() -> tuple[int, ...]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _find_devices(environ: Mapping[str, str]) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    if sys.platform != "darwin" and not any(map(os.path.exists, _HINTS)):
        return (), ()
    devices, notes = probe(environ)
    return shown(devices, environ), notes


def probe(environ: Mapping[str, str], command: Sequence[str] = COMMAND) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """All GPUs, hidden ones too, and what could not be found out."""
    hiding = {name for names in _VISIBLE.values() for name in names}
    asked = {name: value for name, value in environ.items() if name not in hiding}
    try:
        done = subprocess.run(
            command,
            env=asked | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
        )
        said = json.loads(done.stdout)
        return tuple(map(_read, said["devices"])), tuple(map(str, said["notes"]))
    except subprocess.TimeoutExpired:
        return (), (f"the GPUs' driver gave no answer for {_TIMEOUT:g} s",)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        return (), (f"asking for GPUs failed: {last}",)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return (), (f"asking for GPUs failed: {type(error).__name__}: {error}",)


def _read(said: Mapping[str, Any]) -> Device:
    holders = tuple(Holder(**each) for each in said["holders"])
    return Device(**{**said, "kind": Kind(said["kind"]), "holders": holders})


def shown(devices: Sequence[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    """Those that the environment does not hide, in its order."""
    names = _VISIBLE.get(devices[0].kind, ()) if devices else ()
    wanted = next((environ[name] for name in names if name in environ), None)
    return tuple(devices[at] for at in visible([each.id for each in devices], wanted))
