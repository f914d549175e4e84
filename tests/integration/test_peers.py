"""What `scripts/bench peers` starts, it ends: the peers leave children behind, some in sessions of their own."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.benchmark.peers.environments import UnavailableError
from scripts.benchmark.peers.systems import started
from tests.integration.up import wait_gone, watch

pytestmark = pytest.mark.integration

STUBBORN = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
while True: signal.pause()
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print("child", child.pid, file=sys.stderr, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="children are found by /proc")
async def test_a_child_in_a_session_of_its_own_that_ignores_sigterm_is_killed_too() -> None:
    with ExitStack() as stack:
        async with started(Path(sys.executable), "-c", PARENT, environ={}) as running:
            await running.wait_until(running.has_said("child "))
            gone = stack.enter_context(watch([int(running.log.read_text().split()[1])]))
            assert not wait_gone(gone, 0)
        assert wait_gone(gone, 10)


async def test_what_ends_before_it_is_ready_is_reported_with_its_last_words() -> None:
    async with started(Path(sys.executable), "-c", "raise SystemExit('no cluster here')", environ={}) as running:
        with pytest.raises(UnavailableError, match="no cluster here"):
            await running.wait_until(running.has_said("ready"))
