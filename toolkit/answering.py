"""The other side of a short-lived process that the launcher asks something."""

from __future__ import annotations

import os
import sys
from typing import IO, Final

from toolkit.lifeline import die_with_parent

STDOUT: Final = 1


def answers() -> IO[str]:
    """Where this process answers: its standard output. What else is printed there from now on, by libraries and by programs
    that they start too, goes to standard error. It does not outlive who asks.
    """
    die_with_parent()
    sys.stdout.flush()
    out = os.fdopen(os.dup(STDOUT), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), STDOUT)
    sys.stdout = sys.stderr
    return out
