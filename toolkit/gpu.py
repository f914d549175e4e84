"""`resources.gpu_memory` as a limit: torch refuses to allocate more. What does not allocate through torch is not limited."""

from __future__ import annotations

import sys


def limit_gpu_memory(size: int) -> bool:
    """From here on torch raises OutOfMemoryError where this process would hold more bytes of its GPU. False where torch is
    not imported (this does not import it), or shows no CUDA.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), 0)
    return True
