"""`python -m services.prepare [MODEL ...]`: have models ready on this machine, so that services start fast."""

from __future__ import annotations

import shutil
import sys

from services.model_cache import MARKER, is_intact
from services.models import PACKAGED, model_folder
from toolkit.errors import ToolkitError
from toolkit.service import reporter


def main(models: list[str]) -> int:
    """Prepare every model, the packaged ones when none is named. A damaged copy is made again."""
    reporter.set(_report)
    try:
        for model in models or sorted(PACKAGED):
            folder = model_folder(model)
            if (folder / MARKER).exists() and not is_intact(folder):
                _say(f"{folder} is damaged: making it again")
                shutil.rmtree(folder)
                folder = model_folder(model)
            _say(f"{model}: {folder}")
    except ToolkitError as error:
        _say(f"error: {error}")
        return 1
    return 0


def _report(phase: str, done: float | None, total: float | None) -> None:
    if done is None:
        _say(phase)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
