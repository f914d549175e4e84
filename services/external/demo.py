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

OURS: Final = Path(__file__).with_name("graph.yaml")
THEIRS: Final = Path(__file__).with_name("scoring.yaml")
QUESTION: Final = "How do I get my money back?"
CANDIDATES: Final = (
    "Our shops open at nine.",
    "Refunds are paid within five days.",
    "We deliver to every country in Europe.",
)


@asynccontextmanager
async def elsewhere() -> AsyncIterator[str]:
    """Where the scoring service of somebody else's graph listens."""
    port = pick_free_port()
    command = ("-m", "toolkit", "up", str(THEIRS), "--set", f"scoring.port={port}", "--stop-with-input")
    up = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=sys.stderr, stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield f"{LOOPBACK}:{port}"
    finally:
        if up.returncode is None:
            up.terminate()
            await up.wait()


async def show() -> None:
    async with elsewhere() as address, running(OURS, MatcherClient, "--set", f"scoring.url={address}") as matcher:
        reply = await matcher.best(BestRequest(text=QUESTION, candidates=list(CANDIDATES)), timeout=60)
    sys.stdout.write(f"{QUESTION}\n  {reply.candidate} ({reply.score:.2f})\n")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
