"""`settled`: several calls side by side, of which some may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from toolkit.errors import ServiceError

T = TypeVar("T")


async def settled(*calls: Awaitable[T]) -> list[T | ServiceError]:
    """Make calls side by side, and return for each, in order, its reply or the ServiceError that it failed with:

    `drafts = await settled(self.gpt2.generate(ask), self.distilgpt2.generate(ask, timeout=5))`

    `good = [draft for draft in drafts if not isinstance(draft, ServiceError)]`

    A failure of one does not end the others. What is no ServiceError is a bug of this side: it is raised, the first of
    several, and cancels the others, as the caller's own cancellation does. Where all must succeed, use `asyncio.gather`.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_settle(call)) for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _settle(call: Awaitable[T]) -> T | ServiceError:
    try:
        return await call
    except ServiceError as error:
        return error
