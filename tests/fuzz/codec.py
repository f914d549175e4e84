"""Looks for bytes that the codec and protobuf do not read alike: `scripts/fuzz [EXECUTIONS]`.

The first byte of an input chooses the message type, and whether the rest comes behind a filler that has it sliced, or
before a tensor at the end, which is read by a short cut the second time. What follows is the message. Whatever the codec
raises besides DecodeError, and any disagreement, is a crash.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any, Final

GOLDEN: Final = Path(__file__).parents[1] / "golden"
CORPUS: Final = Path(__file__).parent / "corpus"
TYPES: Final = (
    *("kinds.v1.kinds:Node", "kinds.v1.kinds:Scalars", "kinds.v1.kinds:Repeats", "kinds.v1.kinds:Maps"),
    *("kinds.v1.kinds:Choices", "kinds.v1.kinds:WellKnown", "kinds.v1.second:Second", "kinds.v1.second:SecondNode"),
    *("kinds.v1.edition:Edition", "tensors.v1.tensors:Clip", "recursive.v1.recursive:Tree", "oneofs.v1.oneofs:Input"),
)
"""Their order is that of the first byte in the corpus."""


def targets() -> list[tuple[Any, bytes, bytes]]:
    """What each first byte stands for: a message class, and what comes before and behind the message."""
    from services.echo.v1.echo_toolkit import Image
    from tests.reference import FILLER, LAST  # after the instrumentation, as all that imports the toolkit

    classes = [getattr(importlib.import_module(f"golden.{m}_toolkit"), c) for m, c in (t.split(":") for t in TYPES)]
    return [(cls, filler, b"") for filler in (b"", FILLER) for cls in classes] + [(Image, b"", LAST)]


def make_check() -> Any:
    from tests.reference import check_agreement  # likewise

    every = targets()

    def check(data: bytes) -> None:
        cls, before, behind = every[data[0] % len(every)] if data else every[0]
        for _ in range(2 if behind else 1):
            check_agreement(cls, before + data[1:] + behind)

    return check


def main() -> None:
    """Arguments are those of libFuzzer. Source: https://llvm.org/docs/LibFuzzer.html#options"""
    import atheris  # a development dependency that not every platform has

    sys.path.insert(0, str(GOLDEN))
    with atheris.instrument_imports(include=["toolkit"]):
        check = make_check()
    atheris.Setup([*sys.argv, str(CORPUS)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
