"""How a call with a request stream really ended.

When the other side ends it while we still send, grpc.aio puts an error of its own in place of what was said: a moment before
that arrives, or after. Only who looks at each moment sees it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import grpc
import grpc.aio

CORE: Final = "Internal error from Core"
"""How grpc.aio says that it could not send."""
LAST_SECONDS: Final = 1.0
"""For what was said to arrive."""


class Ending:
    """Listens for the end of a call. Make it before anything is sent."""

    def __init__(self, call: Any) -> None:
        self._said: asyncio.Future[grpc.aio.AioRpcError | None] = asyncio.get_running_loop().create_future()
        call.add_done_callback(self._listen)

    async def of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """What the other side said of a call that failed with `error`; None: that it went well."""
        if error.details() != CORE:
            return error
        await asyncio.wait([self._said], timeout=LAST_SECONDS)
        return self._said.result() if self._said.done() else error

    def _listen(self, call: Any) -> None:
        details = _known(call.details())
        if details == CORE or self._said.done():
            return
        code = _known(call.code())
        if code is grpc.StatusCode.OK:
            self._said.set_result(None)
        else:
            metadata = _known(call.initial_metadata()), _known(call.trailing_metadata())
            self._said.set_result(grpc.aio.AioRpcError(code, *metadata, details, _known(call.debug_error_string())))


def _known(value: Coroutine[Any, Any, Any]) -> Any:
    """What grpc.aio knows, though it says it only to those who await it."""
    try:
        value.send(None)
    except StopIteration as end:
        return end.value
    value.close()
    return None
