"""The first rows of new model versions in a file of many: most of them fix the dimension.

The rows of a model version that there is none of yet are held back until a first block of them, or
the end of the file, tells its dimension. So none is stored before that.
"""

from typing import Final

from core.errors import Invalid, K9Error, Unavailable
from core.models import Metric
from core.settings import Settings
from core.usecases.dimensions import common_dimension
from core.usecases.embeddings import EmbeddingService
from deploy.data.bulk import patiently
from deploy.data.migration.legacy_rows import OldRow
from deploy.data.migration.store import OldEmbedding

BLOCK_ROWS: Final = 1000
"""Of one model version, to tell its dimension by."""
HELD_ROWS_MAX: Final = 10_000
"""Of all model versions together; beyond it the one with most of them is decided."""


class FirstRows:
    """Holds rows back, and gives them out again once their dimension is known."""

    def __init__(
        self, embeddings: EmbeddingService, settings: Settings, metric: Metric | None
    ) -> None:
        self._embeddings = embeddings
        self._dimension_max = settings.limits.dimension_max
        self._metric = metric
        self._held: dict[str, list[OldRow]] = {}
        self._count = 0
        self.dimensions: dict[str, int | None] = {}
        """Model version → the dimension that a new one gets; None where there is one already."""
        self.refused: dict[str, str] = {}
        """Model version → why none of its rows is stored."""

    async def take(self, row: OldRow) -> list[OldRow]:
        """Takes the next row; the rows whose turn it is now.

        Raises:
            Unavailable: DynamoDB did not answer after all tries.
        """
        if not isinstance(row.record, OldEmbedding):
            return [row]
        name = row.record.model_version
        if name in self.dimensions or name in self.refused:
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
        """Whether there is no such model version yet; of one that there is, notes so."""
        try:
            model = await patiently(lambda: self._embeddings.find_model(name))
        except Unavailable:
            raise
        except K9Error as error:  # its record cannot be read, which concerns its rows alone
            self.refused[name] = str(error)
            return False
        if model is not None:
            self.dimensions[name] = None
        return model is None

    def rest(self) -> list[OldRow]:
        """The rows that are still held back, at the end of the file."""
        return [row for name in list(self._held) for row in self._decide(name)]

    def _decide(self, name: str) -> list[OldRow]:
        rows = self._held.pop(name)
        self._count -= len(rows)
        vectors = [row.record.vector for row in rows if isinstance(row.record, OldEmbedding)]
        try:
            dimension = common_dimension(
                vectors, self._metric or "cosine", self._dimension_max, name
            )
        except Invalid as error:
            self.refused[name] = str(error)
        else:
            if dimension is not None:  # else none of them is valid, and a later block decides
                self.dimensions[name] = dimension
        return rows
