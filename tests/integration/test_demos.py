"""The examples' demos: real models, real processes, and something that a person would want to read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("multi_model", ["food", "price", "something good", "something bad"]),
        ("ensemble", ["sport", "politics", "by_meaning", "by_likelihood"]),
        ("sequential", ["In short:\n  ", "ferries"]),
        ("controlnet", ["outlines", "###", "128 by 128 pixels"]),
        ("external", ["Refunds are paid within five days."]),
        ("router", ["[storyteller] ", "[scholar] "]),
        ("rag", ["17 passages", "from lighthouse-builder (0.", "Agnes Orme", "from ferry-winter (0."]),
        ("shield", ["PERMISSION_DENIED: weapons and explosives", "Paris"]),
        ("diamond", ["In short:\n", "Does not belong:\n  The mayor's dog"]),
    ],
)
def test_a_demo_shows_what_its_graph_does(name: str, expected: list[str]) -> None:
    printed = shown(name)
    for part in expected:
        assert part in printed


def test_the_relay_shows_a_reviewed_sentence_before_the_writer_has_finished() -> None:
    *sentences, summary = shown("relay").splitlines()
    assert len(sentences) >= 2
    first, first_token, last, last_token = map(float, re.findall(r"[0-9.]+", summary))
    assert first < last
    assert first_token < last_token / 2


def shown(name: str) -> str:
    """What a demo prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"services.{name}.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
