"""Removing tombstones that no index version needs."""

from collections.abc import Iterable

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import equals
from core.dynamo.rows import delete_rows
from core.repositories.embedding_rows import row_key
from core.settings import Settings


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """A deleted row, as a pull found it."""

    product_id: str
    deleted_at: str


class TombstoneRepository:
    """The tombstones of the embeddings table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.EMBEDDINGS.name)
        self._concurrency = settings.ingest.batch_concurrency

    async def remove(self, model_version: str, tombstones: Iterable[Tombstone]) -> int:
        """Removes those that are still the same tombstones, and returns their number.

        A product that was written again, or deleted a second time, stays.

        Raises:
            Unavailable: DynamoDB did not take it in time; the remaining rows stay.
        """
        rows = (
            (
                row_key(model_version, tombstone.product_id),
                equals("deleted_at", tombstone.deleted_at),
            )
            for tombstone in tombstones
        )
        return await delete_rows(self._dynamo, self._table, rows, self._concurrency)
