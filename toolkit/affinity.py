"""Which cores this process runs on."""

from __future__ import annotations

import os
from collections.abc import Sequence


def run_on(cores: Sequence[int]) -> bool:
    """Bind this process to these cores. False where the platform, or the process's cgroup, has no such thing.

    Linux binds threads, not processes: those that an import has started already are bound here, later ones follow.
    """
    if not hasattr(os, "sched_setaffinity"):
        return False
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has ended
            continue
        except OSError:
            return False
    return True
