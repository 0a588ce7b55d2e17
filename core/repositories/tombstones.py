"""Removing tombstones that no version needs any more."""

import asyncio
from collections.abc import Iterable

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import equals, expressions
from core.errors import ConditionFailed
from core.repositories.embedding_rows import row_key
from core.settings import Settings


class Tombstone(msgspec.Struct, frozen=True, gc=False):
    """A deleted row, as a pull met it."""

    product_id: str
    deleted_at: str


class TombstoneRepository:
    """The tombstones of the embeddings table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.EMBEDDINGS.name)
        self._concurrency = settings.ingest.batch_concurrency

    async def remove(self, model_version: str, tombstones: Iterable[Tombstone]) -> int:
        """Removes those that are still the same tombstones; how many that were.

        Raises:
            Unavailable: DynamoDB did not take it in time; the rest is left for another time.
        """
        waiting = iter(tombstones)
        removed = 0

        async def worker() -> None:
            nonlocal removed
            for tombstone in waiting:
                removed += await self._remove(model_version, tombstone)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(worker())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return removed

    async def _remove(self, model_version: str, tombstone: Tombstone) -> bool:
        try:
            await self._dynamo.call(
                "delete_item",
                TableName=self._table,
                Key=row_key(model_version, tombstone.product_id),
                **expressions(condition=equals("deleted_at", tombstone.deleted_at)),
            )
        except ConditionFailed:
            return False  # it was written again, or deleted a second time
        return True
