"""What callers that come together gain from a language model that serves all of them in one step."""

from __future__ import annotations

import asyncio
from typing import Final

from scripts.benchmark.case import Case, Outcome, Work, micros, ratio, time_in_turns
from services.text_generation.v1.text_generation_toolkit import GenerateRequest, TextGenerationClient
from toolkit.dispatch import Dispatcher
from toolkit.transport.local import LocalTransport

CALLERS: Final = 8
TOKENS: Final = 16


async def generate_concurrent() -> Outcome:
    """Tokens a second of eight callers together ÷ of the same eight one after the other."""
    from services.text_generation.service import TextGeneration  # imports torch: seconds that only this case needs

    requests = [GenerateRequest(prompt=f"Chapter {number}. The", max_new_tokens=TOKENS) for number in range(CALLERS)]
    async with TextGeneration() as service:
        generator = TextGenerationClient(LocalTransport(Dispatcher(service, timeout=600)))
        together, in_turn = _together(generator, requests), _in_turn(generator, requests)
        mine, other = await time_in_turns(together, in_turn, rounds=3, calls=1)
        tokens = sum(reply.tokens for reply in await asyncio.gather(*map(generator.generate, requests)))
    measured = {"together_per_s": tokens * 1e6 / micros(mine), "in_turn_per_s": tokens * 1e6 / micros(other)}
    return Outcome("generate-concurrent", ratio(other, mine), ">=", 2, measured)


def _together(generator: TextGenerationClient, requests: list[GenerateRequest]) -> Work:
    return lambda: asyncio.gather(*map(generator.generate, requests))


def _in_turn(generator: TextGenerationClient, requests: list[GenerateRequest]) -> Work:
    async def work() -> None:
        for request in requests:
            await generator.generate(request)

    return work


CASES = (Case("generate-concurrent", generate_concurrent),)
