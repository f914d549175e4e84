"""How tensors usually travel in Python: `tobytes`, protobuf's own message, malloc as it comes.

A process of its own, since malloc's setting belongs to a process: `python -m scripts.benchmark.naive ADDRESS METHOD MIB`.
Each line in asks for a round of so many calls; each line out is their timings.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc.aio
import numpy as np

from scripts.benchmark import bare
from scripts.benchmark.case import timed

FLOAT32 = 11


async def main(address: str, method: str, mib: int) -> None:
    array = np.ones((mib << 20) // 4, np.float32)
    reply = bare.Image if method == "Reflect" else bare.Line
    async with grpc.aio.insecure_channel(address, options=bare.OPTIONS) as channel:
        send = channel.unary_unary(f"/services.echo.v1.Echo/{method}", bare.Image.SerializeToString, reply.FromString)

        async def call() -> Any:
            image = bare.Image()
            image.pixels.dtype = FLOAT32
            image.pixels.shape.append(array.size)
            image.pixels.data = array.tobytes()
            answer = await send(image)
            return np.frombuffer(answer.pixels.data, np.float32) if method == "Reflect" else answer.number

        for line in sys.stdin:
            sys.stdout.write(json.dumps(await timed(call, int(line))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
