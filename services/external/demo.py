"""`python -m services.external.demo`: a graph that calls a service which it did not start."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from services.demo import main, running
from services.external.v1.external_toolkit import BestRequest, MatcherClient
from toolkit.launcher.addresses import pick_free_port
from toolkit.launcher.security import LOOPBACK

QUESTION: Final = "How do I get my money back?"
CANDIDATES: Final = (
    "Our shops open at nine.",
    "Refunds are paid within five days.",
    "We deliver to every country in Europe.",
)


@asynccontextmanager
async def elsewhere() -> AsyncIterator[str]:
    """Where a scoring service runs that belongs to nobody here."""
    address = f"{LOOPBACK}:{pick_free_port()}"
    command = ("-m", "toolkit.replica", "services.scoring.service:Scoring", "--listen", address)
    replica = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=sys.stderr, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield address
    finally:
        if replica.returncode is None:
            replica.terminate()
            await replica.wait()


async def show() -> None:
    graph = Path(__file__).with_name("graph.yaml")
    async with elsewhere() as address, running(graph, MatcherClient, "--set", f"scoring.url={address}") as matcher:
        reply = await matcher.best(BestRequest(text=QUESTION, candidates=list(CANDIDATES)), timeout=60)
    sys.stdout.write(f"{QUESTION}\n  {reply.candidate} ({reply.score:.2f})\n")


if __name__ == "__main__":
    sys.exit(main(show))
