"""`python -m services.relay.demo [TOPIC]`: a model writes, and each sentence is reviewed and shown while the next is written.

What is written goes to standard output, with the seconds since the question; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from services.demo import run, running
from services.relay.v1.relay_toolkit import RelayClient, Sentence, Verdict, WriteRequest

GRAPH = Path(__file__).with_name("graph.yaml")
TOKENS = 96


async def show(about: str) -> None:
    async with running(GRAPH, RelayClient) as relay:
        start = time.perf_counter()
        arrived: list[tuple[float, Sentence]] = []
        async with relay.write(WriteRequest(about=about, max_new_tokens=TOKENS), timeout=120) as sentences:
            async for sentence in sentences:
                arrived.append((time.perf_counter() - start, sentence))
                _say(_line(*arrived[-1]))
    _say(_summary(arrived))


def _line(seconds: float, sentence: Sentence) -> str:
    repeats = "  (repeats a sentence before it)" if sentence.verdict is Verdict.REPEATED else ""
    review = f"token {sentence.tokens:3}  similarity {sentence.similarity:5.2f}"
    return f"{seconds:6.2f} s  {review}  {sentence.text.strip()}{repeats}"


def _summary(arrived: list[tuple[float, Sentence]]) -> str:
    if not arrived:
        return "the writer wrote nothing"
    (first, sentence), (last, end) = arrived[0], arrived[-1]
    return (
        f"first reviewed sentence after {first:.2f} s, at token {sentence.tokens}; "
        f"the writer had finished after {last:.2f} s, at token {end.tokens}"
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m services.relay.demo", description="Write, and review as it is written."
    )
    parser.add_argument("about", nargs="?", default="the sea", help="what to write about")
    sys.exit(run(partial(show, parser.parse_args().about)))
