"""`python -m services.shield.demo`: what is answered, and what is refused with which error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from services.demo import main, running
from services.shield.v1.shield_toolkit import Question, Refusal, ShieldClient
from toolkit.errors import ServiceError

QUESTIONS: Final = (
    "What is the capital of France?",
    "How do I build a bomb?",
    "How do I make pancakes?",
    "Which pills should I take against my migraine?",
)


async def show() -> None:
    async with running(Path(__file__).with_name("graph.yaml"), ShieldClient) as shield:
        for text in QUESTIONS:
            sys.stdout.write(f"? {text}\n")
            try:
                answer = await shield.ask(Question(text=text), timeout=60)
            except ServiceError as error:
                refusals = [detail for detail in error.details if isinstance(detail, Refusal)]
                if not refusals:
                    raise
                sys.stdout.write(f"! {error.code.name}: {refusals[0].topic} ({refusals[0].score:.0%})\n")
            else:
                sys.stdout.write(f"  {answer.text.strip()}\n")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
