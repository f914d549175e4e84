"""The same messages as replies: a server can be as hostile as a client. Each becomes a ServiceError in the caller."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.attacks.messages import ATTACKS, GOOD, LIMIT, Attack
from toolkit.errors import Code, ServiceError
from toolkit.limits import MessageLimits
from toolkit.tensor import DType, Tensor
from toolkit.transport.grpc import GrpcTransport

EMPTY = Tensor(DType.UINT8, (0,), b"")
UNARY = [attack for attack in ATTACKS if attack.method != "ManyNodes"]


class Mouth(grpc.GenericRpcHandler):
    """Answers every method with the same bytes."""

    def __init__(self) -> None:
        self.says = b""

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def answer(request: Any, context: Any) -> bytes:
            return self.says

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
async def mouth_and_client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Mouth, Any]]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "golden"))
    module = importlib.import_module("golden.kinds.v1.attacked_toolkit")
    mouth = Mouth()
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((mouth,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    transport = GrpcTransport(f"127.0.0.1:{port}", limits=MessageLimits(LIMIT))
    yield mouth, module.AttackedClient(transport, "hostile")
    await transport.close()
    await server.stop(0)


@pytest.mark.parametrize("attack", UNARY, ids=str)
async def test_a_hostile_reply_is_an_error_of_the_call(mouth_and_client: tuple[Mouth, Any], attack: Attack) -> None:
    mouth, client = mouth_and_client
    methods = {method.name: method for method in client.__contract__.methods}
    method = methods[attack.method]
    mouth.says = attack.build()
    with pytest.raises(ServiceError) as caught:
        await getattr(client, method.attribute)(EMPTY if method.request is Tensor else method.request(), timeout=30)
    assert caught.value.code in (Code.INTERNAL, Code.RESOURCE_EXHAUSTED)
    assert caught.value.path == ("hostile",)
    mouth.says = GOOD
    assert (await client.nodes(methods["Nodes"].request(), timeout=30)).tensor.nbytes == 5000, (
        "the next good call works"
    )
