"""Answers from passages: what a question means finds the passages, and a writer answers with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from services.embedding.v1.embedding_toolkit import EmbeddingClient, Text
from services.rag.v1.rag_toolkit import AddReply, Piece, Question, RagBase
from services.text_generation.v1.text_generation_toolkit import GenerateRequest, TextGenerationClient
from services.vector_store.v1.vector_store_toolkit import (
    AddRequest,
    Document,
    Entry,
    SearchReply,
    SearchRequest,
    VectorStoreClient,
)
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends

TOGETHER: Final = 32
"""Passages that are embedded at once: the embedding service makes batches of them."""


class Rag(RagBase):
    """Holds no model and no passages: it only asks."""

    embedding = depends(EmbeddingClient)
    store = depends(VectorStoreClient)
    writer = depends(TextGenerationClient)

    def __init__(self, *, passages: int = 2, min_similarity: float = 0.3) -> None:
        """How many passages an answer comes from at most, and how near to the question they must be."""
        self._passages = passages
        self._min_similarity = min_similarity

    async def add(self, requests: AsyncIterator[Document], context: Context) -> AddReply:
        count = 0
        async for documents in _groups(requests):
            entries = await asyncio.gather(*map(self._entry, documents))
            await self.store.add(AddRequest(entries=entries))
            count += len(documents)
        return AddReply(passages=count)

    async def ask(self, request: Question, context: Context) -> AsyncIterator[Piece]:
        passages = await self._find(request.question)
        yield Piece(passages=passages)
        prompt = _prompt(request.question, passages)
        ask = GenerateRequest(prompt=prompt, max_new_tokens=request.max_new_tokens, chat=True)
        async for token in self.writer.stream(ask):
            yield Piece(token=token)

    async def _entry(self, document: Document) -> Entry:
        embedded = await self.embedding.embed(Text(text=document.text))
        return Entry(document=document, vector=embedded.values)

    async def _find(self, question: str) -> SearchReply:
        if not question.strip():
            raise ServiceError(Code.INVALID_ARGUMENT, "question: empty; ask something")
        embedded = await self.embedding.embed(Text(text=question))
        found = await self.store.search(
            SearchRequest(vector=embedded.values, limit=self._passages, min_similarity=self._min_similarity)
        )
        if not found.found:
            raise ServiceError(Code.NOT_FOUND, "no passage is near enough to the question to answer it from")
        return found


async def _groups(documents: AsyncIterator[Document]) -> AsyncIterator[list[Document]]:
    group: list[Document] = []
    async for document in documents:
        group.append(document)
        if len(group) == TOGETHER:
            yield group
            group = []
    if group:
        yield group


def _prompt(question: str, passages: SearchReply) -> str:
    """The nearest passage first: a small model takes most from what comes first."""
    texts = " ".join(found.document.text for found in passages.found if found.document is not None)
    return f"Context: {texts}\n\nQuestion: {question}\n\nAnswer from the context."
