"""Bytes as people write them."""

from __future__ import annotations

GIB, MIB = 1 << 30, 1 << 20


def show_size(size: int) -> str:
    """Bytes as a graph file writes them, never more than there are: `6GiB`, `512MiB`, `23.5GiB`."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB")
    return f"{size * 100 // unit / 100:g}{name}"
