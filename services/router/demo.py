"""`python -m services.router.demo`: two questions, each answered by another model, token by token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from services.demo import main, running
from services.router.v1.router_toolkit import Question, RouterClient

QUESTIONS: Final = ("Write a short story about a lighthouse.", "What is the capital of France?")


async def show() -> None:
    async with running(Path(__file__).with_name("graph.yaml"), RouterClient) as router:
        for text in QUESTIONS:
            async with router.ask(Question(text=text), timeout=60) as pieces:
                async for piece in pieces:
                    sys.stdout.write(piece.text or f"\n{text}\n[{piece.route}] ")
                    sys.stdout.flush()
            sys.stdout.write("\n")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
