"""Ours: `toolkit up` of a graph whose `front` calls `back`, the echo service, through its handle."""

from __future__ import annotations

import json
from typing import Final

import numpy as np

from scripts.benchmark.peers import work
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Image, Line
from toolkit.context import Context
from toolkit.service import depends
from toolkit.tensor import Tensor

GRAPH: Final = """\
name: peers
entry: front
services:
  back: {{class: "services.echo.service:Echo"}}
  front: {{class: "scripts.benchmark.peers.ours:Front", traffic: {{timeout: 90s}}, port: {port}}}
"""


class Front(EchoBase):
    back = depends(EchoClient)

    async def ping(self, request: Line, context: Context) -> Line:
        """The text is the work to do, and becomes what was found, both as JSON."""
        return Line(text=json.dumps(await work.run(json.loads(request.text), self._small, self._tensor)))

    async def _small(self) -> bool:
        reply = await self.back.ping(Line(text=work.TEXT, number=7))
        return reply.text == work.TEXT and reply.number == 7

    def _tensor(self, mib: int) -> work.Call:
        array = np.ones(mib << 18, np.float32)

        async def call() -> bool:
            reply = await self.back.reflect(Image(pixels=Tensor.of(array)))
            if reply.pixels is None:
                return False
            found = reply.pixels.numpy()
            return found.shape == array.shape and bool(found[-1] == 1)

        return call
