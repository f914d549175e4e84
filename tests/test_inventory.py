"""What the short-lived process tells of GPUs, and what the launcher makes of it. The driver's library is a fake here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.launcher.devices import Device, Holder, Kind
from toolkit.launcher.inventory import COMMAND, find_machine, probe, shown

ROOT = Path(__file__).parents[1]
GIB = 1 << 30

NVML = '''
"""Three GPUs, listed out of the order of the bus; the second on the bus is cut into two MIG devices."""
from types import SimpleNamespace as Of


class NVMLError(Exception):
    pass


NVML_DEVICE_MIG_ENABLE = 1
MIG = [Of(uuid="MIG-1", total=10 << 30, free=9 << 30, held=None), Of(uuid="MIG-2", total=10 << 30, free=10 << 30, held=[])]
GPUS = [
    Of(uuid="GPU-c", bus="00000000:C1:00.0", name="NVIDIA L4", total=24 << 30, free=20 << 30, held=[(PID, 4 << 30)], parts=None),
    Of(uuid="GPU-a", bus="00000000:01:00.0", name="NVIDIA T4", total=16 << 30, free=16 << 30, held=[(1 << 30, None)], parts=None),
    Of(uuid="GPU-b", bus="00000000:41:00.0", name="NVIDIA A100", total=40 << 30, free=40 << 30, held=[], parts=MIG),
]


def refuse(*_):
    raise NVMLError("Not Supported")


def nvmlDeviceGetMigMode(gpu):
    return refuse() if gpu.parts is None else [1, 1]


def nvmlDeviceGetMigDeviceHandleByIndex(gpu, index):
    return gpu.parts[index] if index < len(gpu.parts) else refuse()


def nvmlDeviceGetComputeRunningProcesses(gpu):
    return refuse() if gpu.held is None else [Of(pid=pid, usedGpuMemory=memory) for pid, memory in gpu.held]


nvmlInit = lambda: None
nvmlDeviceGetCount = lambda: len(GPUS)
nvmlDeviceGetHandleByIndex = lambda index: GPUS[index]
nvmlDeviceGetPciInfo = lambda gpu: Of(busId=gpu.bus)
nvmlDeviceGetMaxMigDeviceCount = lambda gpu: 7
nvmlDeviceGetMemoryInfo = lambda gpu: gpu
nvmlDeviceGetUUID = lambda gpu: gpu.uuid
nvmlDeviceGetName = lambda gpu: gpu.name
'''


def environ(folder: Path, **modules: str) -> dict[str, str]:
    """These modules are found before those that are installed."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "codegen")))
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "2,0"}


def test_nvml_tells_gpus_in_the_order_of_the_bus_and_mig_devices_in_their_place(tmp_path: Path) -> None:
    devices, notes = probe(environ(tmp_path, pynvml=NVML.replace("PID", str(os.getpid()))))
    ours = Holder(pid=os.getpid(), command=Path("/proc/self/comm").read_text().strip(), memory=4 * GIB)
    assert devices == (
        Device(id="GPU-a", name="NVIDIA T4", total=16 * GIB, free=16 * GIB, holders=(Holder(pid=GIB),)),
        Device(id="MIG-1", name="NVIDIA A100", total=10 * GIB, free=9 * GIB),
        Device(id="MIG-2", name="NVIDIA A100", total=10 * GIB, free=10 * GIB),
        Device(id="GPU-c", name="NVIDIA L4", total=24 * GIB, free=20 * GIB, holders=(ours,)),
    )
    assert notes == ()


DRIVER = r"""
#include <stdio.h>
#include <string.h>
typedef int *gpu;
typedef unsigned long long bytes;
enum { NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
static int gpus[] = {0, 1}, parts[] = {10, 11};
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
const char *nvmlErrorString(int code) { return "refused"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu *found) { *found = &gpus[index]; return 0; }
int nvmlDeviceGetPciInfo_v3(gpu of, struct { char legacy[16]; unsigned ids[5]; char bus[32]; } *pci) {
  strcpy(pci->bus, *of ? "00000000:01:00.0" : "00000000:C1:00.0"); return 0; }
int nvmlDeviceGetMigMode(gpu of, unsigned *now, unsigned *later) {
  if (!*of) return NOT_SUPPORTED;
  *now = *later = 1; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(gpu of, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(gpu of, unsigned index, gpu *found) {
  if (index > 1) return NOT_FOUND;
  *found = &parts[index]; return 0; }
int nvmlDeviceGetMemoryInfo(gpu of, struct { bytes total, free, used; } *memory) {
  memory->total = 24ull << 30; memory->free = (20ull << 30) - *of; memory->used = 0; return 0; }
int nvmlDeviceGetUUID(gpu of, char *text, unsigned size) {
  snprintf(text, size, *of < 10 ? "GPU-%d" : "MIG-%d", *of); return 0; }
int nvmlDeviceGetName(gpu of, char *text, unsigned size) { snprintf(text, size, "NVIDIA %d", *of); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(
    gpu of, unsigned *count, struct { unsigned pid; bytes used; unsigned ids[2]; } *found) {
  if (*of) return NOT_SUPPORTED;
  unsigned size = *count;
  *count = 2;
  if (size < 2) return INSUFFICIENT_SIZE;
  found[0].pid = found[1].pid = 1 << 30; found[0].used = 4ull << 30; found[1].used = -1ull; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, to make a driver that is not there")
def test_nvidias_own_package_is_asked_as_it_wants_to_be(tmp_path: Path) -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py is not installed")
    (tmp_path / "driver.c").write_text(DRIVER)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    devices, notes = probe({**environ(tmp_path), "LD_LIBRARY_PATH": str(tmp_path)})
    foreign = (Holder(pid=GIB, memory=4 * GIB), Holder(pid=GIB))  # the second's memory is not told
    assert devices == (
        Device(id="MIG-10", name="NVIDIA 1", total=24 * GIB, free=20 * GIB - 10),
        Device(id="MIG-11", name="NVIDIA 1", total=24 * GIB, free=20 * GIB - 11),
        Device(id="GPU-0", name="NVIDIA 0", total=24 * GIB, free=20 * GIB, holders=foreign),
    )
    assert notes == ()


TORCH = """
from types import SimpleNamespace as Of
__version__ = "2.0+rocm"
version = Of(hip=HIP)
cuda = Of(
    is_available=lambda: CUDA,
    device_count=lambda: 2,
    mem_get_info=lambda index: (7 << 30, 8 << 30),
    get_device_properties=lambda index: Of(name="MI300", uuid="1234"),
)
backends = Of(mps=Of(is_available=lambda: True))
mps = Of(recommended_max_memory=lambda: 12 << 30)
"""
NO_NVML = "raise ImportError"


def test_torch_tells_of_rocm(tmp_path: Path) -> None:
    torch = TORCH.replace("HIP", "'6.2'").replace("CUDA", "True")
    devices, notes = probe(environ(tmp_path, pynvml=NO_NVML, torch=torch))
    assert [(each.kind, each.id, each.free) for each in devices] == [
        (Kind.ROCM, "0", 7 * GIB),
        (Kind.ROCM, "1", 7 * GIB),
    ]
    assert notes == ()


def test_torch_tells_of_cuda_where_nvml_cannot(tmp_path: Path) -> None:
    torch = TORCH.replace("HIP", "None").replace("CUDA", "True")
    devices, _ = probe(environ(tmp_path, pynvml=NO_NVML, torch=torch))
    assert [(each.kind, each.id) for each in devices] == [(Kind.CUDA, "GPU-1234")] * 2


def test_torch_tells_of_mps(tmp_path: Path) -> None:
    torch = TORCH.replace("HIP", "None").replace("CUDA", "False")
    devices, _ = probe(environ(tmp_path, pynvml=NO_NVML, torch=torch))
    assert devices == (Device(kind=Kind.MPS, id="mps", name="Apple GPU", total=12 * GIB, free=12 * GIB),)


def test_where_nobody_can_be_asked_it_says_what_to_install(tmp_path: Path) -> None:
    devices, notes = probe(environ(tmp_path, pynvml=NO_NVML, torch="raise ImportError"))
    assert devices == ()
    assert notes[0].endswith("pip install 'grpc-model-toolkit[cuda]'")
    assert notes[1] == "torch, which could be asked instead, is not installed"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit('the driver is broken')", "asking for GPUs failed: the driver is broken"),
        ("import os; os._exit(5)", "asking for GPUs failed: exit code 5"),
        ("print('no json')", "asking for GPUs failed: JSONDecodeError"),
        ('print(\'{"devices": [{}], "notes": []}\')', "asking for GPUs failed: KeyError"),
    ],
)
def test_a_probe_that_breaks_is_a_note_and_no_gpu(code: str, expected: str) -> None:
    devices, (note,) = probe(os.environ, (sys.executable, "-c", code))
    assert devices == ()
    assert note.startswith(expected)


@pytest.mark.parametrize(
    ("kind", "environ", "expected"),
    [
        (Kind.CUDA, {}, "01"),
        (Kind.CUDA, {"CUDA_VISIBLE_DEVICES": "1"}, "1"),
        (Kind.CUDA, {"HIP_VISIBLE_DEVICES": "1"}, "01"),
        (Kind.ROCM, {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, "1"),
        (Kind.ROCM, {"CUDA_VISIBLE_DEVICES": "0"}, "0"),
        (Kind.MPS, {"CUDA_VISIBLE_DEVICES": ""}, "01"),
    ],
)
def test_gpus_hidden_from_the_launcher_stay_hidden(kind: Kind, environ: dict[str, str], expected: str) -> None:
    devices = [Device(kind=kind, id=each, total=GIB, free=GIB) for each in "01"]
    assert "".join(each.id for each in shown(devices, environ)) == expected
    assert shown([], environ) == ()


def test_this_machine_has_cores_and_memory() -> None:
    machine = find_machine(os.environ, fake=())
    assert set(machine.cores) == os.sched_getaffinity(0)
    assert 0 < machine.cpus <= len(machine.cores)
    assert machine.memory is not None
    assert machine.memory > 1 << 20
    assert COMMAND[-1] == "toolkit.probe"
