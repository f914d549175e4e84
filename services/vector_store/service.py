"""A vector store as a service: the calls around `index.py`."""

from __future__ import annotations

from typing import Final

from services.vector_store.index import FullError, Index, VectorError
from services.vector_store.v1.vector_store_toolkit import (
    AddReply,
    AddRequest,
    Document,
    Entry,
    Found,
    SearchReply,
    SearchRequest,
    VectorStoreBase,
)
from toolkit.context import Context
from toolkit.errors import Code, ServiceError, StartError
from toolkit.tensor import Tensor

MAX_FOUND: Final = 100
MAX_ID: Final = 256


class VectorStore(VectorStoreBase):
    """In memory, and gone with the process. It needs no model, and one replica: two would not know of each other."""

    def __init__(self, *, max_documents: int = 10_000, max_characters: int = 8192) -> None:
        """How many documents it keeps, and how long the text of each may be."""
        for name, value in (("max_documents", max_documents), ("max_characters", max_characters)):
            if not isinstance(value, int) or value < 1:
                raise StartError(f"args: {name} must be a whole number from 1; found {value!r}")
        self._index: Index[Document] = Index(max_documents)
        self._max_characters = max_characters

    async def add(self, request: AddRequest, context: Context) -> AddReply:
        entries = {}
        for number, entry in enumerate(request.entries):
            document = self._document(entry, f"entries[{number}]")
            entries[document.id] = document, _vector(entry.vector, f"entries[{number}].vector")
        try:
            self._index.add(entries)
        except VectorError as error:
            raise ServiceError(Code.INVALID_ARGUMENT, f"entries: {error}") from None
        except FullError as error:
            raise ServiceError(Code.RESOURCE_EXHAUSTED, f"{error}; raise `max_documents` in its args") from None
        return AddReply(documents=len(self._index))

    async def search(self, request: SearchRequest, context: Context) -> SearchReply:
        if not 1 <= request.limit <= MAX_FOUND:
            raise ServiceError(Code.INVALID_ARGUMENT, f"limit: {request.limit} is not in 1 to {MAX_FOUND}")
        try:
            found = self._index.nearest(_vector(request.vector, "vector"), request.limit, request.min_similarity)
        except VectorError as error:
            raise ServiceError(Code.INVALID_ARGUMENT, f"vector: {error}") from None
        return SearchReply(found=[Found(document=document, similarity=similarity) for document, similarity in found])

    def _document(self, entry: Entry, place: str) -> Document:
        document = entry.document
        if document is None or not 1 <= len(document.id) <= MAX_ID:
            raise ServiceError(Code.INVALID_ARGUMENT, f"{place}.document: give it an id of 1 to {MAX_ID} characters")
        if len(document.text) > self._max_characters:
            raise ServiceError(
                Code.INVALID_ARGUMENT,
                f"{place}.document.text: {len(document.text)} characters; the store takes {self._max_characters}: split it",
            )
        return document


def _vector(vector: Tensor | None, place: str) -> Tensor:
    if vector is None:
        raise ServiceError(Code.INVALID_ARGUMENT, f"{place}: missing")
    return vector
