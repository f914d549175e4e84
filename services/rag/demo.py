"""`python -m services.rag.demo [QUESTION ...]`: passages go in, and questions are answered from those that are nearest.

The answers go to standard output, token by token, after the ids of their passages; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

from services.demo import run, running
from services.rag.v1.rag_toolkit import Piece, Question, RagClient
from services.vector_store.v1.vector_store_toolkit import Document

CORPUS: Final = Path(__file__).with_name("corpus.txt")
QUESTIONS: Final = (
    "Who built the lighthouse?",
    "When does the ferry leave in winter?",
    "What does the beekeeper sell?",
)


async def show(questions: list[str]) -> None:
    async with running(Path(__file__).with_name("graph.yaml"), RagClient) as rag:
        added = await rag.add(corpus(), timeout=60)
        _say(f"{added.passages} passages\n")
        for question in questions:
            await _show_answer(rag, question)


async def corpus() -> AsyncIterator[Document]:
    """The passages of `corpus.txt`, one a line: its id, a bar, its text."""
    for line in CORPUS.read_text().splitlines():
        id_, _, text = line.partition(" | ")
        yield Document(id=id_, text=text)


async def _show_answer(rag: RagClient, question: str) -> None:
    _say(f"\n{question}\n")
    start = time.perf_counter()
    async with rag.ask(Question(question=question, max_new_tokens=40), timeout=60) as pieces:
        async for piece in pieces:
            _say(_text(piece))
    _say(f"\n  {time.perf_counter() - start:.2f} s\n")


def _text(piece: Piece) -> str:
    if piece.passages is None:
        return "" if piece.token is None else piece.token.text
    found = [f"{each.document.id} ({each.similarity:.2f})" for each in piece.passages.found if each.document]
    return f"  from {', '.join(found)}\n  "


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m services.rag.demo", description="Answer questions from passages.")
    parser.add_argument("question", nargs="*", help=f"about {CORPUS.name}; without one, {len(QUESTIONS)} are asked")
    sys.exit(run(partial(show, parser.parse_args().question or list(QUESTIONS))))
