"""Message limits: who sets them, and what happens above them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from services.echo.service import Echo
from services.echo.v1.echo_toolkit import EchoClient, Image, Note
from toolkit.dispatch import Dispatcher
from toolkit.errors import Code, ServiceError
from toolkit.limits import MessageLimits
from toolkit.server import Server
from toolkit.tensor import Tensor
from toolkit.transport.grpc import GrpcTransport

CONTRACT = Echo.__contract__
SAY, REFLECT = (next(m for m in CONTRACT.methods if m.name == name) for name in ("Say", "Reflect"))
KIB = 1024


def test_the_graph_file_s_method_comes_before_the_proto_and_that_before_the_graph_file_s_default() -> None:
    said = MessageLimits(1, {"*": 2, "Say": 3})
    assert (said.of(SAY), said.of(REFLECT)) == (3, 256 << 20)
    assert (MessageLimits(1, {"*": 2}).of(SAY), MessageLimits(1).of(SAY)) == (2, 1)
    assert MessageLimits(1, {"Reflect": 4}).of(REFLECT) == 4


def test_the_connection_lets_the_largest_through() -> None:
    assert MessageLimits(1).largest(CONTRACT) == 256 << 20
    assert MessageLimits().of(SAY) == 64 << 20


@asynccontextmanager
async def echo(server: MessageLimits, client: MessageLimits) -> AsyncIterator[EchoClient]:
    serving = Server(CONTRACT, limits=server)
    (address,) = await serving.listen(("127.0.0.1:0",))
    await serving.open(Dispatcher(Echo(), timeout=30))
    transport = GrpcTransport(address, limits=client, contract=CONTRACT)
    yield EchoClient(transport)
    await transport.close()
    await serving.drain(1)


async def refused(limits: tuple[MessageLimits, MessageLimits], note: Note) -> ServiceError:
    async with echo(*limits) as client:
        with pytest.raises(ServiceError) as caught:
            await client.say(note)
        assert (await client.say(Note(text="small"))).text == "small"
    return caught.value


@pytest.mark.parametrize("limits", [({"Say": KIB}, {}), ({}, {"Say": KIB}), ({"*": KIB}, {})])
async def test_a_message_over_the_limit_of_either_side_is_refused_and_the_next_one_works(
    limits: tuple[dict[str, int], dict[str, int]],
) -> None:
    server, client = (MessageLimits(said=said) for said in limits)
    error = await refused((server, client), Note(text="x" * 2 * KIB))
    assert error.code == Code.RESOURCE_EXHAUSTED
    assert "over this method's limit of 1024" in error.message


async def test_a_message_over_the_connection_s_limit_is_refused_before_it_is_read() -> None:
    small = {method.name: KIB for method in CONTRACT.methods}
    error = await refused((MessageLimits(said=small), MessageLimits()), Note(text="x" * 2 * KIB))
    assert error.code == Code.RESOURCE_EXHAUSTED


async def test_a_method_s_own_limit_may_be_larger_than_the_rest() -> None:
    pixels = Tensor.of(np.zeros(1 << 20, np.uint8))
    async with echo(MessageLimits(KIB), MessageLimits(KIB)) as client:
        assert (await client.reflect(Image(pixels=pixels))).pixels == pixels
