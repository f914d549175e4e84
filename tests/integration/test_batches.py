"""Limits of batches on their way from a graph file to a replica."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from services.echo.v1.echo_toolkit import EchoClient, Line
from tests.integration.alone import alone
from toolkit.connect import connect

pytestmark = pytest.mark.integration

CALLS = 9
MODULE = f"""
import asyncio
from services.echo.v1.echo_toolkit import EchoBase, Line
from toolkit.batching import batched

here = []
all_here = asyncio.Event()

def count(request):
    here.append(request)
    if len(here) == {CALLS}:
        all_here.set()
    return 1.0

class Counts(EchoBase):
    @batched(max_size=64, cost=count, max_cost=64)
    async def ping(self, requests, context):
        await all_here.wait()
        return [Line(text=request.text, number=len(requests)) for request in requests]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "classes.py").write_text(MODULE)
    return tmp_path


def test_a_replica_keeps_to_the_limits_that_it_is_given(folder: Path) -> None:
    async def sizes(address: str) -> list[int]:
        async with connect(EchoClient, address) as echo:
            replies = await asyncio.gather(*(echo.ping(Line(text=str(n))) for n in range(CALLS)))
        assert [reply.text for reply in replies] == [str(n) for n in range(CALLS)]
        return [reply.number for reply in replies]

    env = {"TOOLKIT_BATCHING": json.dumps({"ping": {"max_size": 4}}), "TOOLKIT_MAX_CONCURRENCY": "1"}
    with alone("classes:Counts", folder=folder, env=env) as process:
        (address,) = process.wait_ready()
        assert max(asyncio.run(sizes(address))) == 4


def test_limits_of_what_is_not_batched_stop_its_start(folder: Path) -> None:
    with alone("classes:Counts", folder=folder, env={"TOOLKIT_BATCHING": '{"say": {"max_size": 4}}'}) as process:
        assert process.wait_exit() == 1
    assert process.errors == [
        "error: batching: say is no batched method of services.echo.v1.Echo; decorate its handler with @batched"
    ]
