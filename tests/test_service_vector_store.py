"""The vector store through its handle: what it keeps, what it finds, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from services.vector_store.service import VectorStore
from services.vector_store.v1.vector_store_toolkit import (
    AddRequest,
    Document,
    Entry,
    SearchRequest,
    VectorStoreClient,
)
from toolkit.errors import Code, ServiceError, StartError
from toolkit.tensor import Tensor
from toolkit.testing import serve


@pytest.fixture
async def store() -> AsyncIterator[VectorStoreClient]:
    async with serve(VectorStore(max_documents=3, max_characters=10), VectorStoreClient) as client:
        yield client


def entry(id_: str, *vector: float, text: str = "") -> Entry:
    return Entry(document=Document(id=id_, text=text), vector=Tensor.of(np.array(vector, np.float32)))


def asking(*vector: float, limit: int = 10, min_similarity: float = 0.0) -> SearchRequest:
    wanted = Tensor.of(np.array(vector, np.float32))
    return SearchRequest(vector=wanted, limit=limit, min_similarity=min_similarity)


async def ids(store: VectorStoreClient, request: SearchRequest) -> list[str]:
    return [found.document.id for found in (await store.search(request)).found if found.document]


async def test_the_nearest_come_first_with_the_cosine(store: VectorStoreClient) -> None:
    await store.add(
        AddRequest(entries=[entry("east", 2, 0), entry("north", 0, 0.5, text="cold"), entry("west", -1, 0)])
    )
    found = (await store.search(asking(1, 3))).found
    assert [each.document for each in found] == [Document(id="north", text="cold"), Document(id="east")]
    assert [each.similarity for each in found] == pytest.approx([3 / 10**0.5, 1 / 10**0.5])


async def test_a_search_keeps_to_its_limit_and_its_least_similarity(store: VectorStoreClient) -> None:
    await store.add(AddRequest(entries=[entry("a", 1, 0), entry("b", 1, 1), entry("c", 0, 1)]))
    assert await ids(store, asking(1, 0, limit=1)) == ["a"]
    assert await ids(store, asking(1, 0, min_similarity=0.5)) == ["a", "b"]
    assert await ids(store, asking(-1, 0, min_similarity=-1)) == ["c", "b", "a"]


async def test_an_empty_store_finds_nothing(store: VectorStoreClient) -> None:
    assert await ids(store, asking(1, 0)) == []


async def test_a_known_id_is_replaced(store: VectorStoreClient) -> None:
    await store.add(AddRequest(entries=[entry("a", 1, 0, text="old"), entry("b", 0, 1)]))
    reply = await store.add(AddRequest(entries=[entry("a", 0, 1, text="new")]))
    assert reply.documents == 2
    (first, _) = (await store.search(asking(0, 1))).found
    assert first.document == Document(id="a", text="new")
    assert first.similarity == pytest.approx(1)


async def test_any_kind_of_number_is_a_vector(store: VectorStoreClient) -> None:
    whole = Entry(document=Document(id="whole"), vector=Tensor.of(np.array([0, 3], np.int64)))
    half = Entry(document=Document(id="half"), vector=Tensor.of(np.array([2, 0], np.float16)))
    await store.add(AddRequest(entries=[whole, half]))
    assert await ids(store, asking(1, 0, min_similarity=0.9)) == ["half"]


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([entry("a", 0, 0)], "a vector needs a direction"),
        ([entry("a", 1, float("nan"))], "a vector needs a direction"),
        ([entry("a", 1, float("inf"))], "a vector needs a direction"),
        ([entry("a", 1, 0), entry("b", 1, 0, 0)], "vectors of 2 and 3 numbers do not go together"),
        ([entry("a")], "not shape \\(0,\\)"),
        ([entry("a", 1, 0), entry("", 1, 0)], r"entries\[2\].document: give it an id"),
        ([entry("a", 1, 0, text="x" * 11)], r"entries\[1\].document.text: 11 characters; the store takes 10"),
        ([Entry(document=Document(id="a"))], r"entries\[1\].vector: missing"),
        ([Entry(vector=Tensor.of(np.ones(2, np.float32)))], r"entries\[1\].document: give it an id"),
    ],
)
async def test_what_is_wrong_is_refused_and_nothing_kept(
    store: VectorStoreClient, entries: list[Entry], fault: str
) -> None:
    with pytest.raises(ServiceError, match=fault) as refused:
        await store.add(AddRequest(entries=[entry("good", 1, 0), *entries]))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert await ids(store, asking(1, 0)) == []


async def test_a_full_store_takes_no_more_but_still_replaces(store: VectorStoreClient) -> None:
    await store.add(AddRequest(entries=[entry(name, 1, 0) for name in "abc"]))
    with pytest.raises(ServiceError, match="keeps at most 3 documents and has 3; raise `max_documents`") as refused:
        await store.add(AddRequest(entries=[entry("d", 1, 0)]))
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert (await store.add(AddRequest(entries=[entry("a", 0, 1)]))).documents == 3


@pytest.mark.parametrize(
    ("request_", "fault"),
    [
        (asking(1, 0, limit=0), "limit: 0 is not in 1 to 100"),
        (asking(1, 0, limit=101), "limit: 101 is not in 1 to 100"),
        (SearchRequest(limit=1), "vector: missing"),
        (asking(1, 0, 0), "vector: a vector of 3 numbers; those in the store have 2"),
        (asking(0, 0), "vector: a vector needs a direction"),
    ],
)
async def test_a_wrong_search_is_refused(store: VectorStoreClient, request_: SearchRequest, fault: str) -> None:
    await store.add(AddRequest(entries=[entry("a", 1, 0)]))
    with pytest.raises(ServiceError, match=fault) as refused:
        await store.search(request_)
    assert refused.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("args", [{"max_documents": 0}, {"max_characters": "many"}])
def test_wrong_args_stop_the_start(args: dict[str, Any]) -> None:
    with pytest.raises(StartError, match=r"args: max_\w+ must be a whole number from 1"):
        VectorStore(**args)
