"""Mistakes that mypy --strict and pyright both refuse: exactly the lines that end in `# wrong`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from golden.cardinalities.v1.cardinalities_toolkit import CardinalitiesBase, CardinalitiesClient, Item, Sum
from golden.deprecated.v1.deprecated_toolkit import Old, OldServiceClient
from golden.enums.v1.enums_toolkit import Levels
from golden.oneofs.v1.oneofs_toolkit import Blob, Input
from golden.presence.v1.optional_toolkit import Optional
from golden.tensors.v1.tensors_toolkit import Frame

from toolkit.batching import BatchContext, batched
from toolkit.context import Context
from toolkit.service import depends


def fields(frame: Frame) -> None:
    Item(number="1")  # wrong
    Item(nummer=1)  # wrong
    Item(1)  # wrong
    Levels(plain="LOW")  # wrong
    Levels(by_name={1: 2})  # wrong
    Input(blob=b"bytes")  # wrong
    Input(blob=Blob(data="text"))  # wrong
    Frame(pixels=[1, 2, 3])  # wrong
    Frame().captoin = "x"  # wrong
    frame.pixels.numpy()  # wrong
    Optional().number + 1  # wrong


async def call(client: CardinalitiesClient, items: list[Item]) -> None:
    await client.unary(Sum(total=1))  # wrong
    await client.unari(Item())  # wrong
    await client.unary(Item(), timeout="1s")  # wrong
    await client.unary(Item(), 1.0)  # wrong
    total = client.unary(Item()).total  # wrong
    await client.server_stream(Item())  # wrong
    await client.client_stream(items)  # wrong
    for _ in client.server_stream(Item()):  # wrong
        pass
    wrong: Item = await client.unary(Item())  # wrong
    assert wrong == total


async def warn(client: OldServiceClient) -> None:
    await client.do(Old())  # wrong


class Wrong(CardinalitiesBase):
    async def unary(self, request: Sum, context: Context) -> Sum:  # wrong
        return request

    async def client_stream(self, requests: AsyncIterator[Item], context: Context) -> Item:  # wrong
        return Item()

    async def server_stream(self, request: Item, context: Context) -> list[Item]:  # wrong
        return []


class Graph(CardinalitiesBase):
    other = depends(CardinalitiesClient)
    base = depends(CardinalitiesBase)  # wrong

    async def unary(self, request: Item, context: Context) -> Sum:
        return await self.other.server_stream(request)  # wrong


class WrongRequests(CardinalitiesBase):
    @batched()
    async def unary(self, requests: list[Sum], context: BatchContext) -> list[Sum]:  # wrong
        return requests


class WrongReplies(CardinalitiesBase):
    @batched()
    async def unary(self, requests: list[Item], context: BatchContext) -> list[Item]:  # wrong
        return requests


class NotAList:
    @batched()  # wrong
    async def unary(self, request: Item, context: BatchContext) -> list[Sum]:
        return []


class Streams(CardinalitiesBase):
    @batched()
    async def client_stream(self, requests: list[Item], context: BatchContext) -> list[Sum]:  # wrong
        return []
