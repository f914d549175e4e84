"""How the next token is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen, and how many there may be."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together are this probable have a chance."""
    seed: int = 0


def sample(scores: torch.Tensor, temperature: float, top_p: float, random: torch.Generator) -> int:
    """Draw a token: likelier ones more often, sharper at a low temperature, none outside of the first `top_p`."""
    likely, ids = torch.softmax(scores / temperature, dim=-1).sort(descending=True)
    likely[likely.cumsum(-1) - likely >= top_p] = 0
    return int(ids[torch.multinomial(likely, 1, generator=random)])
