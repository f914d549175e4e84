"""The embedding service with its real model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from services.embedding.service import Embedding
from services.embedding.v1.embedding_toolkit import EmbeddingClient, Text
from toolkit.errors import Code, ServiceError
from toolkit.testing import serve


@pytest.fixture(scope="module")
def service() -> Embedding:
    return Embedding()


@pytest.fixture
async def embedding(service: Embedding) -> AsyncIterator[EmbeddingClient]:
    async with serve(service, EmbeddingClient) as client:
        yield client


async def vector(embedding: EmbeddingClient, text: str) -> np.ndarray:
    return np.asarray((await embedding.embed(Text(text=text))).values)


async def test_near_meanings_have_near_vectors_of_length_one(embedding: EmbeddingClient) -> None:
    texts = ("A man is eating food.", "A man eats something.", "The stock market fell.")
    man, eats, market = [await vector(embedding, text) for text in texts]
    assert man.shape == (384,)
    assert np.linalg.norm(man) == pytest.approx(1, abs=1e-5)
    assert man @ eats > 0.7 > 0.3 > man @ market


async def test_texts_that_come_together_get_the_vectors_that_each_gets_alone(embedding: EmbeddingClient) -> None:
    texts = ["One.", "Two words.", "A rather long sentence about something else entirely, " * 4] * 3
    together = await asyncio.gather(*(vector(embedding, text) for text in texts))
    for text, found in zip(texts, together, strict=True):
        np.testing.assert_allclose(found, await vector(embedding, text), atol=1e-5)


async def test_a_text_at_fault_fails_alone(embedding: EmbeddingClient) -> None:
    texts = ["word " * 600, "  ", "Good."]
    long, empty, good = await asyncio.gather(*(vector(embedding, text) for text in texts), return_exceptions=True)
    assert isinstance(long, ServiceError)
    assert (long.code, long.message) == (Code.INVALID_ARGUMENT, "text: a text of 602 tokens; the model reads 512")
    assert isinstance(empty, ServiceError)
    assert (empty.code, empty.message) == (Code.INVALID_ARGUMENT, "text: empty; give some words")
    assert isinstance(good, np.ndarray)
