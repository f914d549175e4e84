"""What batches bring to many callers, and cost one. The model has one thread everywhere, as `cpus: 1` in a graph file says."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from scripts.benchmark.case import Case, Outcome, Work, micros, ratio, time_in_turns
from scripts.benchmark.processes import server
from scripts.benchmark.scores import pair
from services.scoring.v1.scoring_toolkit import ScoringClient
from toolkit.connect import connect
from toolkit.errors import Code, ServiceError

CALLERS: Final = 64
BATCH: Final = 32
"""As the service has it."""
ROUNDS: Final = 3
CALLS: Final = 256
"""Pairs of a round."""
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
BATCHED: Final = "services.scoring.service:Scoring"
SCORES: Final = "scripts.benchmark.scores"
ONE_BY_ONE: Final = f"{SCORES}:OneByOne"
_OFFLINE: Final = f"""
import json, sys, time
from scripts.benchmark.scores import pair
from services.scoring.model import EmbeddingModel
model = EmbeddingModel("minilm-l6")
pairs = [(each.a, each.b) for each in map(pair, range({CALLS}))]
for line in sys.stdin:
    start = time.perf_counter()
    for first in range(0, {CALLS}, {BATCH}):
        model.similarities(pairs[first : first + {BATCH}])
    print(json.dumps(time.perf_counter() - start), flush=True)
"""


async def batch_score() -> Outcome:
    """Pairs a second that 64 callers get of MiniLM over gRPC, in batches of 32 ÷ a loop over such batches without calls."""
    async with scoring(BATCHED) as client, offline() as alone:
        mine, other = await time_in_turns(many(client), alone, rounds=ROUNDS, calls=1)
    return Outcome("batch-score", ratio(other, mine), ">=", 0.85, rates(ours=mine, offline=other))


async def batch_score_gain() -> Outcome:
    """Pairs a second that 64 callers get of MiniLM over gRPC: in batches ÷ one by one."""
    async with scoring(BATCHED) as client, scoring(ONE_BY_ONE) as other_client:
        mine, other = await time_in_turns(many(client), many(other_client), rounds=ROUNDS, calls=1)
    return Outcome("batch-score-gain", ratio(other, mine), ">=", 3, rates(batched=mine, one_by_one=other))


async def batch_score_alone() -> Outcome:
    """Milliseconds that batching adds to the calls of one caller, to a model that takes no time: the median of the rounds."""
    async with scoring(f"{SCORES}:NothingInBatches") as client, scoring(f"{SCORES}:NothingOneByOne") as other_client:
        mine, other = await time_in_turns(one(client), one(other_client), rounds=40, calls=50)
    added = statistics.median(a - b for a, b in zip(mine, other, strict=True)) * 1e3
    return Outcome("batch-score-alone", added, "<=", 0.3, {"batched_us": micros(mine), "one_by_one_us": micros(other)})


def rates(**seconds: list[float]) -> dict[str, float]:
    return {f"{name}_per_s": CALLS / statistics.median(each) for name, each in seconds.items()}


def one(client: ScoringClient) -> Work:
    numbers = itertools.count()
    return lambda: client.score(pair(next(numbers)))


def many(client: ScoringClient) -> Work:
    async def lane(numbers: range) -> None:
        for number in numbers:
            await client.score(pair(number))

    async def all_lanes() -> None:
        await asyncio.gather(*(lane(range(first, CALLS, CALLERS)) for first in range(CALLERS)))

    return all_lanes


@asynccontextmanager
async def scoring(service: str) -> AsyncIterator[ScoringClient]:
    async with (
        server("toolkit.replica", service, "--listen", TOOLKIT_MAX_QUEUE="128", **ONE_THREAD) as address,
        connect(ScoringClient, address) as client,
    ):
        await _answers(client)
        yield client


async def _answers(client: ScoringClient) -> None:
    """Once its model is loaded."""
    async with asyncio.timeout(120):
        while not await _has_answered(client):  # noqa: ASYNC110 - another process has no event of ours
            await asyncio.sleep(0.1)


async def _has_answered(client: ScoringClient) -> bool:
    try:
        await client.score(pair(0))
    except ServiceError as error:
        if error.code is not Code.UNAVAILABLE:
            raise
        return False
    return True


@asynccontextmanager
async def offline() -> AsyncIterator[Work]:
    """A process with the model and nothing else, which takes its turn when it is told to."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _OFFLINE,
        stdin=-1,
        stdout=-1,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **ONE_THREAD},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def turn() -> float:
        stdin.write(b"\n")
        return float(json.loads(await stdout.readline()))

    try:
        await turn()
        yield turn
    finally:
        stdin.close()
        await process.wait()


CASES = (
    Case("batch-score", batch_score),
    Case("batch-score-gain", batch_score_gain),
    Case("batch-score-alone", batch_score_alone),
)
