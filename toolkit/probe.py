"""A short-lived process that tells which GPUs there are: one JSON object on standard output.

    {"devices": [{"kind": "cuda", "id": "GPU-…", "name": "…", "total": 0, "free": 0, "holders": [{"pid": 1, …}]}], "notes": []}

NVIDIA's are asked for through NVML (package nvidia-ml-py), which tells all; where that cannot be had, and for all others,
torch is asked. So the launcher loads no driver, and never imports torch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.answering import answers


def main() -> None:
    out = answers()
    devices, notes = _ask_nvml()
    if not devices:
        devices, more = _ask_torch()
        notes = [] if devices else [*notes, *more]
    out.write(json.dumps({"devices": devices, "notes": notes}) + "\n")
    out.flush()


def _ask_nvml() -> tuple[list[dict[str, Any]], list[str]]:
    try:
        import pynvml
    except ImportError:
        return [], ["NVML cannot be asked without the package nvidia-ml-py: pip install 'grpc-model-toolkit[cuda]'"]
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        handles.sort(key=lambda handle: str(pynvml.nvmlDeviceGetPciInfo(handle).busId))
        return [_describe(pynvml, *each) for handle in handles for each in _parts(pynvml, handle)], []
    except pynvml.NVMLError as error:
        return [], [f"NVML cannot be asked: {error}"]


def _parts(nvml: Any, handle: Any) -> Iterator[tuple[Any, Any]]:
    """The GPU itself, or the MIG devices that it is cut into: then nothing runs on the GPU itself. Each with its GPU."""
    try:
        is_cut = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # it cannot be cut
        is_cut = False
    if not is_cut:
        yield handle, handle
        return
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(nvml.NVMLError):  # nothing in this place
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index), handle


def _describe(nvml: Any, handle: Any, parent: Any) -> dict[str, Any]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "kind": "cuda",
        "id": str(nvml.nvmlDeviceGetUUID(handle)),
        "name": str(nvml.nvmlDeviceGetName(parent)),
        "total": int(memory.total),
        "free": int(memory.free),
        "holders": list(_holders(nvml, handle)),
    }


def _holders(nvml: Any, handle: Any) -> Iterator[dict[str, Any]]:
    try:
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:  # not told in a container, or for a MIG device
        return
    for each in processes:
        yield {"pid": int(each.pid), "command": _command(each.pid), "memory": each.usedGpuMemory}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _ask_torch() -> tuple[list[dict[str, Any]], list[str]]:
    try:
        import torch
    except ImportError:
        return [], ["torch, which could be asked instead, is not installed"]
    if torch.cuda.is_available():
        return [_describe_with_torch(torch, index) for index in range(torch.cuda.device_count())], []
    if torch.backends.mps.is_available():
        total = int(torch.mps.recommended_max_memory())
        return [{"kind": "mps", "id": "mps", "name": "Apple GPU", "total": total, "free": total, "holders": []}], []
    return [], [f"torch {torch.__version__} sees no GPU"]


def _describe_with_torch(torch: Any, index: int) -> dict[str, Any]:
    """ROCm answers here too."""
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    is_rocm = torch.version.hip is not None
    return {
        "kind": "rocm" if is_rocm else "cuda",
        "id": str(index) if is_rocm else f"GPU-{properties.uuid}",
        "name": str(properties.name),
        "total": int(total),
        "free": int(free),
        "holders": [],
    }


if __name__ == "__main__":
    main()
