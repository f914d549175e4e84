"""`python -m services.diamond.demo`: what a text says, and what in it does not belong."""

from __future__ import annotations

import sys
from pathlib import Path

from services.demo import main, running
from services.diamond.v1.diamond_toolkit import DigestClient
from services.sequential.demo import TEXT
from services.sequential.v1.sequential_toolkit import Document


async def show() -> None:
    async with running(Path(__file__).with_name("graph.yaml"), DigestClient) as digest:
        reply = await digest.read(Document(text=TEXT), timeout=60)
    assert reply.oddity is not None
    sys.stdout.write(f"{TEXT}\n\nIn short:\n")
    sys.stdout.writelines(f"  {sentence.text}\n" for sentence in reply.summary)
    sys.stdout.write(f"Does not belong:\n  {reply.oddity.text}\n")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
