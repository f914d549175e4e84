"""What it costs to turn a message into bytes and back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from scripts.benchmark.case import Case, Outcome, micros
from services.echo.v1.echo_toolkit import Image, Note
from toolkit import codec
from toolkit.memory import keep_freed_memory
from toolkit.tensor import Tensor

TEN: Final = Note(
    text="a text", times=3, number=7, weight=0.5, urgent=True, blob=b"bytes", tags=["tag"], counts={"k": 1}, level=2
)


async def message_small() -> Outcome:
    """Microseconds to encode and decode a message of ten fields, nine of them set."""
    value = micros(_timed(lambda: codec.decode(Note, codec.encode(TEN)), rounds=2000, calls=10))
    return Outcome("message-small", value, "<=", 10, {"ours_us": value})


async def codec_1m() -> Outcome:
    """Encoding and decoding a tensor of 1 MiB, against copying 1 MiB once."""
    keep_freed_memory()
    array = np.ones(1 << 18, np.float32)
    view = array.view(np.uint8).data
    ours: list[float] = []
    copies: list[float] = []
    for _ in range(40):
        ours += _timed(lambda: codec.decode(Image, codec.encode(Image(pixels=Tensor.of(array)))), rounds=20, calls=1)
        copies += _timed(lambda: bytes(view), rounds=20, calls=1)
    measured = {"ours_us": micros(ours), "copy_us": micros(copies)}
    return Outcome("codec-1m", micros(ours) / micros(copies), "<=", 1.3, measured)


def _timed(work: Callable[[], Any], *, rounds: int, calls: int) -> list[float]:
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - start) / calls)
    return found


CASES = (Case("message-small", message_small), Case("codec-1m", codec_1m))
