"""Code that a user may write: mypy --strict and pyright in strict mode accept all of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import assert_type

import numpy as np
from golden.cardinalities.v1.cardinalities_toolkit import CardinalitiesBase, CardinalitiesClient, Item, Sum
from golden.imports.v1.imports_toolkit import Everything
from golden.keywords.v1.class_toolkit import KeywordsClient, None_, Shadow, Within, Words
from golden.keywords.v1.class_toolkit import list as ListMessage  # noqa: N812 - a type of this name is the point
from golden.nested.v1 import nested_toolkit as nested
from golden.oneofs.v1.oneofs_toolkit import Input
from golden.presence.v1.optional_toolkit import Optional
from golden.presence.v1.proto2_toolkit import Second, Start
from golden.tensors.v1.tensors_toolkit import Clip, Frame, VisionBase, VisionClient
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from toolkit.batching import BatchContext, batched, size_class
from toolkit.client import Stream
from toolkit.context import Context
from toolkit.ensemble import settled
from toolkit.errors import Code, ServiceError
from toolkit.service import depends
from toolkit.tensor import DType, Tensor


class Cardinalities(CardinalitiesBase):
    async def unary(self, request: Item, context: Context) -> Sum:
        return Sum(total=request.number)

    async def server_stream(self, request: Item, context: Context) -> AsyncIterator[Item]:
        for number in range(request.number):
            yield Item(number=number)

    async def client_stream(self, requests: AsyncIterator[Item], context: Context) -> Sum:
        return Sum(total=sum([item.number async for item in requests]))

    async def both_ways(self, requests: AsyncIterator[Item], context: Context) -> AsyncIterator[Item]:
        async for item in requests:
            yield item


class OtherNames(CardinalitiesBase):
    async def unary(self, item: Item, context: Context) -> Sum:
        return Sum(total=item.number)


def number(item: Item) -> int:
    return item.number


class Batches(CardinalitiesBase):
    @batched(max_size=16, pad_by=number, cost=number, max_cost=100)
    async def unary(self, requests: list[Item], context: BatchContext) -> list[Sum]:
        assert_type(context.calls, tuple[Context, ...])
        return [Sum(total=item.number) for item in requests]


class BatchesInThread(CardinalitiesBase):
    @batched(pad_by=lambda item: size_class(item.number))
    def unary(self, requests: Sequence[Item], context: Context) -> list[Sum | ServiceError]:
        return [Sum(total=item.number) if item.number else ServiceError(Code.NOT_FOUND, "0") for item in requests]


async def use_directly(service: Batches, context: Context) -> None:
    assert_type(await service.unary(Item(number=1), context), Sum)


class Vision(VisionBase):
    counter = depends(CardinalitiesClient)

    async def embed(self, request: Tensor, context: Context) -> Tensor:
        assert_type(self.counter, CardinalitiesClient)
        both = await asyncio.gather(self.counter.unary(Item(number=1)), self.counter.unary(Item(number=2), timeout=1.5))
        assert_type(both, tuple[Sum, Sum])
        ends = await settled(self.counter.unary(Item(number=1)), self.counter.unary(Item(number=2)))
        assert_type(ends, list[Sum | ServiceError])
        assert_type([end for end in ends if not isinstance(end, ServiceError)], list[Sum])
        return request


async def call(client: CardinalitiesClient) -> None:
    assert_type(await client.unary(Item(number=1), metadata={"key": "value"}), Sum)
    assert_type(client.server_stream(Item()), Stream[Item])
    async for item in client.server_stream(Item(number=3)):
        assert_type(item, Item)
    async with client.both_ways(client.server_stream(Item(number=3))) as stream:
        assert_type([item async for item in stream], list[Item])
    assert_type(await client.client_stream(client.server_stream(Item())), Sum)


async def see(client: VisionClient) -> None:
    frame = Frame(pixels=Tensor.of(np.zeros((2, 3), np.float32)), caption="black")
    clip = await client.caption(frame)
    assert_type(clip.frames, list[Frame])
    assert_type(clip.frames[0].pixels, Tensor | None)
    assert_type(clip.tracks, list[Tensor])
    assert_type(clip.named, dict[str, Tensor])
    assert_type(Clip(dtype=DType.FLOAT32).dtype, DType)
    assert_type(await client.embed(Tensor.of(np.zeros(3))), Tensor)


def fields() -> None:
    assert_type(Input(id="1", text="one").text, str | None)
    assert_type(Optional(number=0).number, int | None)
    assert_type(Optional(number=0).plain, str)
    assert_type(Second(start=Start.TWO).start, Start | None)
    assert_type(Words(class_="a", str="b", int=1, list=["c"]).list, list[str])
    assert_type(Everything(at=Timestamp(seconds=1)).at, Timestamp | None)
    assert_type(Everything().structs, dict[str, Struct])
    assert_type(Everything().null, int)


def names() -> None:
    assert_type(nested.Outer().own, nested.Outer.Part | None)
    assert_type(nested.Outer().other, nested.Part | None)
    assert_type(nested.Outer().inner, nested.Outer.Outer | None)
    assert_type(nested.Outer().outer, nested.Outer | None)
    assert_type(nested.Outer().kind, nested.Outer.Kind)
    assert_type(nested.Outer().top, nested.Kind)
    assert_type(nested.Outer.Outer.Deep().part, nested.Outer.Part | None)
    assert_type(nested.Hides().Kind, nested.Kind)
    assert_type(nested.Hides().parts, list[nested.Outer.Part])
    assert_type(ListMessage().list, list[ListMessage])
    assert_type(None_().global_, Shadow)
    assert_type(Within().kind, Within.int)
    assert_type(Within().number, int)


async def hidden(client: KeywordsClient) -> None:
    assert_type(await client.import_(Words()), None_)
    assert_type(client.list(ListMessage()), Stream[ListMessage])
