"""The limit of a GPU's memory, with the real torch where it shows no CUDA, and with its four calls where one would be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from toolkit.gpu import limit_gpu_memory

GIB = 1 << 30


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """What torch was told of a GPU of 24 GiB: share and device."""
    told: list[tuple[float, int]] = []
    shown = SimpleNamespace(
        is_available=lambda: True,
        get_device_properties=lambda device: SimpleNamespace(total_memory=24 * GIB),
        set_per_process_memory_fraction=lambda share, device: told.append((share, device)),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=shown))
    return told


def test_torch_is_told_its_share_of_the_first_gpu(cuda: list[tuple[float, int]]) -> None:
    assert limit_gpu_memory(6 * GIB)
    assert cuda == [(0.25, 0)]


def test_a_limit_beyond_the_gpu_is_the_whole_of_it(cuda: list[tuple[float, int]]) -> None:
    assert limit_gpu_memory(30 * GIB)
    assert cuda == [(1.0, 0)]


def test_torch_is_not_imported_for_it() -> None:
    code = (
        "import sys; from toolkit.gpu import limit_gpu_memory as f; assert not f(1); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_what_is_asked_of_torch_is_there() -> None:
    torch = pytest.importorskip("torch")
    for name in ("is_available", "get_device_properties", "set_per_process_memory_fraction"):
        assert callable(getattr(torch.cuda, name))
    if torch.cuda.is_available():
        assert limit_gpu_memory(GIB)
        try:
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)
    else:
        assert not limit_gpu_memory(GIB)
