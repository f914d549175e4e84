"""Where a graph file's project lives."""

from __future__ import annotations

from pathlib import Path


def project_folder(graph_file: Path) -> Path:
    """The nearest folder, from the file's own upwards, with `protos/` or `pyproject.toml`; else the file's own.

    Replicas run there, so that the project's classes are importable without an installation.
    """
    own = graph_file.absolute().parent
    for folder in (own, *own.parents):
        if (folder / "protos").is_dir() or (folder / "pyproject.toml").is_file():
            return folder
    return own
