"""Ray Serve's: a deployment that calls another through its handle, runs in Ray's environment.

Each line in asks for a work; each line out is what the front found.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from scripts.benchmark.peers import work


@dataclass
class Line:
    text: str
    number: int


@serve.deployment(max_ongoing_requests=64)
class Back:
    async def ping(self, line: Line) -> Line:
        return line

    async def reflect(self, pixels: np.ndarray) -> np.ndarray:
        return pixels


@serve.deployment
class Front:
    def __init__(self, back: DeploymentHandle) -> None:
        self.back = back

    async def measure(self, asked: dict[str, Any]) -> dict[str, Any]:
        return await work.run(asked, self._small, self._tensor)

    async def _small(self) -> bool:
        reply = await self.back.ping.remote(Line(text=work.TEXT, number=7))
        return reply.text == work.TEXT and reply.number == 7

    def _tensor(self, mib: int) -> work.Call:
        array = np.ones(mib << 18, np.float32)

        async def call() -> bool:
            found = await self.back.reflect.remote(array)
            return found.shape == array.shape and bool(found[-1] == 1)

        return call


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    ray.init(num_cpus=max(2, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    front = serve.run(Front.bind(Back.bind()), name="peers", route_prefix=None)
    sys.stderr.write("peers: ready\n")
    asyncio.run(answer(front, answers))
    serve.shutdown()


async def answer(front: DeploymentHandle, answers: TextIO) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        answers.write(json.dumps(await front.measure.remote(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
