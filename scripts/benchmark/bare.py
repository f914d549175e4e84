"""The yardstick: grpc.aio as its own documentation uses it, with protobuf's own messages.

`python -m scripts.benchmark.bare ADDRESS` serves it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
import uvloop
from google.protobuf import descriptor_pool, message_factory

import services.echo.v1.echo_toolkit  # noqa: F401 - registers the .proto
from toolkit.memory import keep_freed_memory

LIMIT: Final = 256 << 20
OPTIONS: Final = [("grpc.max_receive_message_length", LIMIT), ("grpc.max_send_message_length", LIMIT)]
_pool = descriptor_pool.Default()
Note: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("services.echo.v1.Note"))
Line: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("services.echo.v1.Line"))
Image: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("services.echo.v1.Image"))


async def echo(request: Any, context: Any) -> Any:
    return request


async def total(request: Any, context: Any) -> Any:
    return Line(number=int(np.frombuffer(request.pixels.data, np.float32).sum()))


async def raw_total(data: bytes, context: Any) -> bytes:
    total: bytes = Line(number=int(np.frombuffer(data, np.float32).sum())).SerializeToString()
    return total


async def repeat(request: Any, context: Any) -> Any:
    for number in range(request.times):
        yield Note(text=request.text, number=number)


def handlers() -> grpc.GenericRpcHandler:
    def unary(kind: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(echo, kind.FromString, kind.SerializeToString)

    return grpc.method_handlers_generic_handler(
        "services.echo.v1.Echo",
        {
            "Ping": unary(Line),
            "Reflect": unary(Image),
            "Total": grpc.unary_unary_rpc_method_handler(total, Image.FromString, Line.SerializeToString),
            "Raw": grpc.unary_unary_rpc_method_handler(echo),
            "RawTotal": grpc.unary_unary_rpc_method_handler(raw_total),
            "Repeat": grpc.unary_stream_rpc_method_handler(repeat, Note.FromString, Note.SerializeToString),
        },
    )


async def main(address: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((handlers(),))
    server.add_insecure_port(address)
    await server.start()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(server.stop(0)))
    await server.wait_for_termination()


if __name__ == "__main__":
    if "KEEP_FREED_MEMORY" in os.environ:
        keep_freed_memory()
    uvloop.run(main(sys.argv[1]))
