"""`python -m services.ensemble.demo`: two classifiers vote on a few sentences."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from services.classification.v1.classification_toolkit import ClassifyRequest
from services.demo import main, running
from services.ensemble.v1.ensemble_toolkit import EnsembleClient

LABELS: Final = ["sport", "politics", "technology", "weather"]
TEXTS: Final = (
    "The keeper held the penalty in the last minute.",
    "Parliament passed the budget by two votes.",
    "The new phone charges in ten minutes.",
    "A storm will cross the coast on Friday.",
)


async def show() -> None:
    async with running(Path(__file__).with_name("graph.yaml"), EnsembleClient) as ensemble:
        for text in TEXTS:
            prediction = await ensemble.predict(ClassifyRequest(text=text, labels=LABELS), timeout=60)
            best = prediction.labels[0]
            votes = ", ".join(f"{vote.classifier}: {vote.error or vote.labels[0].name}" for vote in prediction.votes)
            sys.stdout.write(f"{best.name:<11} {best.score:4.0%}   {text:<50} ({votes})\n")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
