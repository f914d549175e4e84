"""What the fuzzer has found stays found, and a short run of it goes with every test run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.codec import CORPUS, GOLDEN, make_check

ROOT = Path(__file__).parents[2]
EXECUTIONS = 20_000


@pytest.fixture(scope="module", autouse=True)
def _golden_is_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GOLDEN))
        yield


def test_the_codec_and_protobuf_agree_on_the_corpus() -> None:
    check = make_check()
    inputs = sorted(CORPUS.iterdir())
    assert len(inputs) > 100
    for each in inputs:
        check(each.read_bytes())


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    options = (
        f"-runs={EXECUTIONS}",
        "-max_len=1024",
        "-timeout=5",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
        str(found),
    )
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.codec", *options], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {EXECUTIONS} runs" in done.stderr
