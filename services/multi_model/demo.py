"""`python -m services.multi_model.demo`: what some reviews are about, and how they sound, from two models in one process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from services.classification.v1.classification_toolkit import ClassifyRequest
from services.demo import main, running
from services.multi_model.v1.multi_model_toolkit import MultiModelClient

LABELS: Final = ["food", "service", "price", "the room"]
TEXTS: Final = (
    "The soup was the best that I have had in years.",
    "We waited an hour, and then the waiter brought the wrong bill.",
    "Three hundred for one night is robbery.",
    "A quiet bed, a view of the lake, and clean towels every day.",
)


async def show() -> None:
    async with running(Path(__file__).with_name("graph.yaml"), MultiModelClient) as models:
        for text in TEXTS:
            reply = await models.combined(ClassifyRequest(text=text, labels=LABELS), timeout=60)
            topic, mood = reply.topic[0], reply.mood[0]
            sys.stdout.write(f"{topic.name:<9} {topic.score:4.0%}   {mood.name:<15} {mood.score:4.0%}   {text}\n")


if __name__ == "__main__":
    sys.exit(main(show, __doc__))
