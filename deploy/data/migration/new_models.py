"""The dimension of new model versions in a file of many: that of most of their first rows.

The rows of a model version that does not exist yet are held back, and none is stored, until a first
block of them, or the end of the file, determines its dimension.
"""

from typing import Final

from core.errors import Invalid, K9Error, Unavailable
from core.models import Metric
from core.usecases.dimensions import common_dimension
from core.usecases.embeddings import EmbeddingService
from deploy.data.bulk import retried
from deploy.data.migration.legacy_rows import LegacyRow
from deploy.data.migration.store import LegacyEmbedding

BLOCK_ROWS: Final = 1000
"""Rows of one model version that determine its dimension."""
HELD_ROWS_MAX: Final = 10_000
"""Of all model versions together; beyond it the one with the most rows is decided."""


class NewModels:
    """Holds back rows of new model versions, and releases them once the dimension is known."""

    def __init__(self, embeddings: EmbeddingService, metric: Metric | None) -> None:
        self._embeddings = embeddings
        self._metric = metric
        self._held: dict[str, list[LegacyRow]] = {}
        self._count = 0
        self.dimensions: dict[str, int | None] = {}
        """By model version: the dimension of a new one; None for one that exists."""
        self.rejected: dict[str, str] = {}
        """By model version: why none of its rows is stored."""

    async def add(self, row: LegacyRow) -> list[LegacyRow]:
        """Adds the next row, and returns the rows to store now.

        Raises:
            Unavailable: DynamoDB did not answer after all attempts.
        """
        if not isinstance(row.record, LegacyEmbedding):
            return [row]
        name = row.record.model_version
        if name in self.dimensions or name in self.rejected:
            return [row]
        held = self._held.get(name)
        if held is None:
            if not await self._is_new(name):
                return [row]
            held = self._held[name] = []
        held.append(row)
        self._count += 1
        if len(held) >= BLOCK_ROWS:
            return self._decide(name)
        if self._count > HELD_ROWS_MAX:
            return self._decide(max(self._held, key=lambda other: len(self._held[other])))
        return []

    async def _is_new(self, name: str) -> bool:
        """Whether there is no such model version yet; one that exists is noted."""
        try:
            model = await retried(lambda: self._embeddings.find_model(name))
        except Unavailable:
            raise
        except K9Error as error:  # its record cannot be read, which only concerns its own rows
            self.rejected[name] = str(error)
            return False
        if model is not None:
            self.dimensions[name] = None
        return model is None

    def rest(self) -> list[LegacyRow]:
        """Releases the rows that are still held back at the end of the file."""
        return [row for name in list(self._held) for row in self._decide(name)]

    def _decide(self, name: str) -> list[LegacyRow]:
        rows = self._held.pop(name)
        self._count -= len(rows)
        vectors = [row.record.vector for row in rows if isinstance(row.record, LegacyEmbedding)]
        try:
            dimension = common_dimension(vectors, self._metric or "cosine", name)
        except Invalid as error:
            self.rejected[name] = str(error)
        else:
            if dimension is not None:  # otherwise none of them is valid, and a later block decides
                self.dimensions[name] = dimension
        return rows
