"""Answers from passages, with the real models: what is found, and what the answer says."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import torch

from services.embedding.service import Embedding
from services.embedding.v1.embedding_toolkit import EmbeddingClient
from services.rag.demo import corpus
from services.rag.service import TOGETHER, Rag
from services.rag.v1.rag_toolkit import Piece, Question, RagClient
from services.text_generation.service import TextGeneration
from services.text_generation.v1.text_generation_toolkit import TextGenerationClient
from services.vector_store.service import VectorStore
from services.vector_store.v1.vector_store_toolkit import Document, VectorStoreClient
from toolkit.errors import Code, ServiceError
from toolkit.testing import serve


@pytest.fixture(scope="module")
def models() -> tuple[TextGeneration, Embedding]:
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other are slower than one
    return TextGeneration(max_new_tokens=64), Embedding()


@pytest.fixture
async def rag(models: tuple[TextGeneration, Embedding]) -> AsyncIterator[RagClient]:
    writer, embedding = models
    rag = Rag()
    async with (
        serve(writer, TextGenerationClient) as rag.writer,
        serve(embedding, EmbeddingClient) as rag.embedding,
        serve(VectorStore(max_documents=50), VectorStoreClient) as rag.store,
        serve(rag, RagClient) as client,
    ):
        yield client


async def asked(rag: RagClient, question: str) -> list[Piece]:
    return [piece async for piece in rag.ask(Question(question=question, max_new_tokens=24))]


async def test_the_passages_come_first_and_the_answer_from_them(rag: RagClient) -> None:
    assert (await rag.add(corpus())).passages == 17
    first, *rest = await asked(rag, "Who built the lighthouse?")
    assert first.passages is not None
    assert [found.document.id for found in first.passages.found if found.document] == [
        "lighthouse-builder",
        "lighthouse-height",
    ]
    tokens = [piece.token for piece in rest]
    assert "Agnes Orme" in "".join(token.text for token in tokens if token is not None)
    assert [token is not None and bool(token.finish_reason) for token in tokens] == [False] * (len(tokens) - 1) + [True]


async def test_a_question_that_no_passage_is_near_to_is_not_answered(rag: RagClient) -> None:
    await rag.add(corpus())
    for question in ("What is the derivative of a polynomial?", "How do I install a printer driver?"):
        with pytest.raises(ServiceError, match="no passage is near enough") as refused:
            await asked(rag, question)
        assert refused.value.code is Code.NOT_FOUND


async def test_an_empty_question_is_refused(rag: RagClient) -> None:
    with pytest.raises(ServiceError, match="question: empty") as refused:
        await asked(rag, " ")
    assert refused.value.code is Code.INVALID_ARGUMENT


async def test_more_passages_than_one_batch_go_in(rag: RagClient) -> None:
    async def many() -> AsyncIterator[Document]:
        for number in range(TOGETHER + 3):
            yield Document(id=f"n{number}", text=f"The number {number}.")

    assert (await rag.add(many())).passages == TOGETHER + 3


async def test_what_the_store_refuses_reaches_the_caller(rag: RagClient) -> None:
    async def unnamed() -> AsyncIterator[Document]:
        yield Document(text="A passage without an id.")

    with pytest.raises(ServiceError, match="give it an id") as refused:
        await rag.add(unnamed())
    assert refused.value.code is Code.INVALID_ARGUMENT
