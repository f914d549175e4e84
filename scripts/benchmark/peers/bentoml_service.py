"""BentoML's: `bentoml serve` of a service that depends on another, runs in BentoML's environment.

TUNED=1: the connection between the two is never made anew, and no line is logged for each call.
"""

from __future__ import annotations

import os
from typing import Any, Final

import bentoml
import numpy as np
from pydantic import BaseModel

from scripts.benchmark.peers import work

TUNED: Final[dict[str, Any]] = {
    "runner_connection": {"max_requests": 10**9, "max_age": 1e9},
    "logging": {"access": {"enabled": False}},
}
OPTIONS: Final = TUNED if os.environ.get("TUNED") else {}


class Line(BaseModel):
    text: str
    number: int


@bentoml.service(name="back", **OPTIONS)
class Back:
    @bentoml.api
    async def ping(self, line: Line) -> Line:
        return line

    @bentoml.api
    async def reflect(self, pixels: np.ndarray) -> np.ndarray:
        return pixels


@bentoml.service(name="front", traffic={"timeout": 90})
class Front:
    back = bentoml.depends(Back)

    @bentoml.api
    async def measure(self, asked: dict[str, Any]) -> dict[str, Any]:
        return await work.run(asked, self._small, self._tensor)

    async def _small(self) -> bool:
        reply = await self.back.ping(line=Line(text=work.TEXT, number=7))
        return reply.text == work.TEXT and reply.number == 7

    def _tensor(self, mib: int) -> work.Call:
        array = np.ones(mib << 18, np.float32)

        async def call() -> bool:
            found = await self.back.reflect(pixels=array)
            return found.shape == array.shape and bool(found[-1] == 1)

        return call
