"""`python -m services.inference_graph.demo [SENTENCE]`: bring the graph up, ask it once, print the answer, take it down.

The answer is JSON on standard output; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

from services.demo import run, running
from services.inference_graph.v1.inference_graph_toolkit import InferenceGraphClient, ScoreRequest

GRAPH = Path(__file__).with_name("graph.yaml")


async def show(sentence: str) -> None:
    async with running(GRAPH, InferenceGraphClient) as graph:
        reply = await graph.generate_score(ScoreRequest(sentence=sentence), timeout=120)
    results = [{**dataclasses.asdict(each), "score": round(each.score, 4)} for each in reply.results]
    sys.stdout.write(json.dumps({"sentence": sentence, "results": results}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Ask the inference graph once.")
    parser.add_argument("sentence", nargs="?", default="I have an idea!", help="what the generators continue")
    sys.exit(run(partial(show, parser.parse_args().sentence)))
