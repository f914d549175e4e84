"""What is attacked: a service that takes every kind of message and answers with an empty one.

`python -m toolkit.replica tests.attacks.target:Target`, with tests/golden on PYTHONPATH.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import AsyncIterator
from typing import Any

from golden.kinds.v1.attacked_toolkit import AttackedBase
from golden.kinds.v1.kinds_toolkit import Node
from google.protobuf.empty_pb2 import Empty

from toolkit.context import Context
from toolkit.tensor import DType, Tensor


class Target(AttackedBase):
    async def tensors(self, request: Tensor, context: Context) -> Tensor:
        return Tensor(DType.UINT8, (0,), b"")

    async def trim(self, request: Empty, context: Context) -> Empty:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return Empty()

    async def many_nodes(self, requests: AsyncIterator[Node], context: Context) -> Node:
        async for _ in requests:
            pass
        return Node()


async def _answer(self: Target, request: Any, context: Context) -> Any:
    return type(request)()


for _name in ("nodes", "scalar", "repeated", "unpacked", "mapped", "chosen", "second_nodes", "structs"):
    setattr(Target, _name, _answer)
