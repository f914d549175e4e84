"""`python -m services.sequential.demo`: a short text, and the sentences that stand for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from services.demo import main, running
from services.sequential.v1.sequential_toolkit import SummaryClient, SummaryRequest

TEXT: Final = """\
The harbour town of Lorne has bought six electric ferries. They replace diesel boats that are forty years old. The ferries are
charged overnight, when power is cheap. The mayor's dog was at the ceremony, and slept. Passengers say that the new boats are
quieter than the old. The town expects the electric boats to pay for themselves within nine years."""


async def show() -> None:
    async with running(Path(__file__).with_name("graph.yaml"), SummaryClient) as summary:
        reply = await summary.summarise(SummaryRequest(text=TEXT, sentences=2), timeout=60)
    sys.stdout.write(f"{TEXT}\n\nIn short:\n")
    for sentence in reply.sentences:
        sys.stdout.write(f"  {sentence.position + 1}. {sentence.text}\n")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
