"""The end of a sentence about a name that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str]) -> str:
    """`did you mean 'gpt2'?`, or nothing."""
    found = get_close_matches(name, list(known), n=1)
    return f"did you mean {found[0]!r}?" if found else ""


def no_deployment(name: str, known: Iterable[str]) -> str:
    """The whole sentence."""
    known = tuple(known)
    return f"no deployment is named {name!r}; {near(name, known) or 'there are ' + ', '.join(known)}"
