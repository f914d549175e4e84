"""Documents and the directions of their vectors, in one matrix. Knows nothing of calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_DIMENSIONS: Final = 8192
D = TypeVar("D")


class VectorError(ValueError):
    """A vector that has no direction, or that does not fit to the others."""


class FullError(Exception):
    """There is no room for so many documents."""


class Index(Generic[D]):
    """At most `capacity` documents by their ids. The first vector decides how many numbers all of them have."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: dict[str, int] = {}
        self._documents: list[D] = []
        self._directions: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self._documents)

    def add(self, entries: Mapping[str, tuple[D, ArrayLike]]) -> None:
        """Keep all of them or, when it raises VectorError or FullError, none. A known id's document is replaced."""
        directions = {id_: self._direction(vector) for id_, (_, vector) in entries.items()}
        sizes = {direction.size for direction in directions.values()} | self._size()
        if len(sizes) > 1:
            raise VectorError(f"vectors of {' and '.join(map(str, sorted(sizes)))} numbers do not go together")
        if len(self._rows.keys() | entries.keys()) > self._capacity:
            raise FullError(f"the store keeps at most {self._capacity} documents and has {len(self)}")
        for id_, (document, _) in entries.items():
            self._keep(id_, document, directions[id_])

    def nearest(self, vector: ArrayLike, limit: int, min_similarity: float) -> list[tuple[D, float]]:
        """The documents with the most similar vectors, the most similar first. Raises VectorError."""
        direction = self._direction(vector)
        if self._directions is None:
            return []
        if {direction.size} != self._size():
            raise VectorError(
                f"a vector of {direction.size} numbers; those in the store have {self._directions.shape[1]}"
            )
        similarities = self._directions[: len(self)] @ direction
        order = np.argsort(-similarities, kind="stable")[:limit]
        return [
            (self._documents[row], float(similarities[row])) for row in order if similarities[row] >= min_similarity
        ]

    def _keep(self, id_: str, document: D, direction: NDArray[np.float32]) -> None:
        if self._directions is None:
            self._directions = np.empty((self._capacity, direction.size), np.float32)  # takes memory as it is filled
        row = self._rows.setdefault(id_, len(self))
        self._documents[row : row + 1] = [document]
        self._directions[row] = direction

    def _size(self) -> set[int]:
        return set() if self._directions is None else {self._directions.shape[1]}

    @staticmethod
    def _direction(vector: ArrayLike) -> NDArray[np.float32]:
        """The same direction with length 1."""
        found = np.asarray(vector).astype(np.float64)
        if found.ndim != 1 or not 1 <= found.size <= MAX_DIMENSIONS:
            raise VectorError(f"a vector has one dimension and 1 to {MAX_DIMENSIONS} numbers, not shape {found.shape}")
        length = float(np.linalg.norm(found))
        if not 0 < length < np.inf:
            raise VectorError("a vector needs a direction: finite numbers, and not all zero")
        return (found / length).astype(np.float32)
