"""Hostile messages against a real replica, sent as raw bytes. See messages.py for what they are.

Each is refused as the client's fault or as too much, at once; the replica's memory grows by no more than twice its limit,
and the next good call works. gRPC itself holds a message three times while it takes it in, which no codec can change, so
the messages here are at most a quarter of the limit where their size is not the point.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.attacks.messages import ATTACKS, BURDENS, GOOD, LIMIT, MIB, Attack, content
from toolkit.contract import wait_serving

log = logging.getLogger(__name__)
"""The figures: `pytest tests/attacks --log-cli-level=INFO`."""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc"),
]

ROOT = Path(__file__).parents[2]
SERVICE = "golden.kinds.v1.Attacked"
REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
SECONDS = 2.0
"""Of a processor, for one call: what is busy beside it does not count. Less than a third of one is usual."""


@dataclass(frozen=True, slots=True)
class Replica:
    """The attacked process."""

    pid: int
    channel: grpc.aio.Channel

    async def send(self, method: str, data: bytes, compression: Any = None) -> bytes:
        path = f"/{SERVICE}/{method}"
        if method == "ManyNodes":
            reply = self.channel.stream_unary(path)(iter([GOOD, data]), timeout=60)
        else:
            reply = self.channel.unary_unary(path)(data, timeout=60, compression=compression)
        return await reply  # type: ignore[no-any-return]  # bytes, without a deserializer

    async def settle(self) -> int:
        """Have freed memory given back, and the peak forgotten. Returns the bytes in use."""
        await self.send("Trim", b"")
        self._forget_peak()
        return self.memory("VmRSS")

    def _forget_peak(self) -> None:
        """proc(5): writing 5 sets the peak to what is in use."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def seconds(self) -> float:
        """Of the processor, that it has taken so far: proc(5) tells user and system time, behind the name in brackets."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, field: str) -> int:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


@pytest.fixture(scope="module")
def process() -> Iterator[tuple[int, str]]:
    """One replica for all attacks: each meets what those before it left behind. Its id and its address."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/s"
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "golden")))
        environ = {**os.environ, "PYTHONPATH": paths, "TOOLKIT_MAX_MESSAGE_BYTES": str(LIMIT)}
        command = (sys.executable, "-m", "toolkit.replica", "tests.attacks.target:Target", "--listen", address)
        with subprocess.Popen(command, env=environ, cwd=ROOT, stderr=subprocess.DEVNULL) as replica:
            yield replica.pid, address
            replica.terminate()
            assert replica.wait(30) == 0


@pytest.fixture
async def replica(process: tuple[int, str]) -> AsyncIterator[Replica]:
    pid, address = process
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        await channel.channel_ready()
        await wait_serving(channel, SERVICE)
        replica = Replica(pid, channel)
        await replica.send("Nodes", GOOD)
        yield replica
        assert await replica.send("Nodes", GOOD) == b"", "the next good call works"


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
async def test_a_hostile_message_is_refused(replica: Replica, attack: Attack) -> None:
    data = attack.build()
    before, start = await replica.settle(), replica.seconds()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.send(attack.method, data)
    took, grown = replica.seconds() - start, replica.memory("VmHWM") - before
    log.info("%s", f"{attack} | {len(data)} B | {grown / MIB:.1f} MiB | {took:.2f} s | {caught.value.code().name}")
    assert caught.value.code() in REFUSED
    said = caught.value.details() or ""
    assert said
    assert "Traceback" not in said
    assert "internal error" not in said
    assert took < SECONDS
    assert grown <= 2 * LIMIT


@pytest.mark.parametrize("burden", BURDENS, ids=str)
async def test_a_legal_message_costs_no_more_than_the_limit_allows(replica: Replica, burden: Attack) -> None:
    data = burden.build()
    before, start = await replica.settle(), replica.seconds()
    await replica.send(burden.method, data)
    took, grown = replica.seconds() - start, replica.memory("VmHWM") - before
    log.info("%s", f"{burden} | {len(data)} B | {grown / MIB:.1f} MiB | {took:.2f} s | OK")
    assert took < SECONDS
    assert grown <= 2 * LIMIT


async def test_a_message_that_inflates_to_ten_times_the_limit_is_refused(replica: Replica) -> None:
    data = content(14, bytes(10 * LIMIT))
    before = await replica.settle()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replica.send("Scalar", data, grpc.Compression.Gzip)
    grown = replica.memory("VmHWM") - before
    log.info("%s", f"gzip bomb | {len(data)} B | {grown / MIB:.1f} MiB | {caught.value.code().name}")
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grown <= 2 * LIMIT


async def test_a_hostile_message_as_large_as_may_be_takes_no_more_than_a_good_one(replica: Replica) -> None:
    """gRPC holds a message three times while it takes it in, whatever it is."""
    peaks = []
    size = LIMIT - 100
    for data, is_good in ((content(99, bytes(size)), True), (content(17, b"") * (size // 3), False)):
        before = await replica.settle()
        if is_good:
            await replica.send("Scalar", data)
        else:
            with pytest.raises(grpc.aio.AioRpcError, match="too many small parts"):
                await replica.send("Repeated", data)
        peaks.append(replica.memory("VmHWM") - before)
    good, hostile = peaks
    assert hostile <= good + LIMIT // 4
