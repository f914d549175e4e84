"""What `process: NAME` saves: a service that calls two others, of which one shares its process."""

from __future__ import annotations

import json
import re

import numpy as np

from scripts.benchmark.case import Case, Outcome, micros, ratio, time_in_turns
from scripts.benchmark.graphs import up_graph
from services.echo.v1.echo_toolkit import EchoBase, EchoClient, Image, Line
from toolkit.connect import connect
from toolkit.context import Context
from toolkit.service import depends
from toolkit.tensor import Tensor

SERVICES = """\
  front: {class: "scripts.benchmark.shared:Front", process: pair, port: PORT}
  near: {class: "services.echo.service:Echo", process: pair}
  far: {class: "services.echo.service:Echo"}
"""
TIMEOUT = 300.0


class Front(EchoBase):
    """Times both, from where a handler calls them."""

    near = depends(EchoClient)
    far = depends(EchoClient)

    async def ping(self, request: Line, context: Context) -> Line:
        if request.number:
            image = Image(pixels=Tensor.of(np.ones(request.number << 18, np.float32)))
            near, far = await time_in_turns(
                lambda: self.near.reflect(image), lambda: self.far.reflect(image), rounds=5, calls=10
            )
        else:
            near, far = await time_in_turns(
                lambda: self.near.ping(request), lambda: self.far.ping(request), rounds=10, calls=200
            )
        return Line(text=json.dumps([near, far]))


async def small() -> Outcome:
    """A call of the smallest message to another process ÷ one to a neighbour in the same process."""
    return await measured("process-call", 0, 15)


async def tensor() -> Outcome:
    """The same with a tensor of 16 MiB, there and back."""
    return await measured("process-16m", 16, 500)


async def measured(name: str, mib: int, limit: float) -> Outcome:
    async with up_graph("shared", "front", SERVICES) as up:
        found = re.search(r"ready: shared on (\S+)", (await up.wait("ready: shared on .*"))[0])
        assert found is not None
        async with connect(EchoClient, found[1]) as front:
            reply = await front.ping(Line(number=mib), timeout=TIMEOUT)
        await up.down()
    near, far = json.loads(reply.text)
    return Outcome(name, ratio(far, near), ">=", limit, {"near_us": micros(near), "far_us": micros(far)})


CASES = (Case("process-call", small), Case("process-16m", tensor))
