"""Writes of embeddings in one transaction with the record of their idempotency key."""

import asyncio
from collections.abc import Callable, Sequence

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import expressions
from core.dynamo.wire import Item
from core.errors import TableMissing, TransactionFailed, Unavailable
from core.models import Embedding, Model, now, timestamp
from core.repositories import transactions
from core.repositories.embedding_rows import (
    GENERATION,
    burial,
    embedding_of,
    generation_of,
    live_row,
    other_generation,
    row_key,
    tombstone_of,
    unchanged,
    unknown,
    writable,
)
from core.repositories.idempotency import lost
from core.repositories.transactions import Part, refused
from core.settings import Settings

_ONCE_ROWS = 99
"""A transaction has 100 parts, one of them the note."""
_ONCE_TRIES = 5


class KeyedEmbeddings:
    """The embeddings table, each write in a transaction with other parts: all of it, or nothing."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.EMBEDDINGS.name)
        self._ingest = settings.ingest

    async def store_embedding(
        self,
        model: Model,
        product_id: str,
        vector: bytes,
        also: Callable[[Embedding, bool], Sequence[Part]],
    ) -> tuple[Embedding, bool]:
        """Puts one row with other parts, which may depend on what it did.

        Raises:
            InFlight: the idempotency claim among the parts was lost.
            OtherGeneration: the row is of another model version of the same name.
            Unavailable: others kept writing the same row.
        """
        for _ in range(_ONCE_TRIES):
            there = await self._state(model.model_version, product_id)
            if there is not None and generation_of(there) != model.generation:
                raise other_generation(model)
            stored = embedding_of(model, product_id, vector, timestamp(now()))
            created = there is None or "deleted_at" in there
            same = unchanged(there)
            if await self._transacted(
                transactions.put(self._table, live_row(stored, model), same), also(stored, created)
            ):
                return stored, created
        raise Unavailable("others kept writing the same row; try again")

    async def delete_embedding(
        self, model: Model, product_id: str, also: Callable[[Embedding], Sequence[Part]]
    ) -> Embedding:
        """Turns a row into a tombstone, with other parts.

        Raises:
            NotFound: there is no such row, or it was deleted before.
            InFlight: the idempotency claim among the parts was lost.
        """
        tombstone = tombstone_of(model, product_id, timestamp(now()))
        change, condition = burial(model, tombstone)
        row = row_key(model.model_version, product_id)
        part = transactions.update(self._table, row, change, condition)
        if not await self._transacted(part, also(tombstone)):
            raise unknown(model.model_version, product_id)
        return tombstone

    async def store_batch(
        self,
        model: Model,
        rows: Sequence[tuple[str, bytes]],
        note: Callable[[str], Part],
        noted: frozenset[str],
    ) -> list[str]:
        """Puts many rows in transactions of up to 99, each with a part that notes it.

        What was noted by an earlier try is left alone: it may have been overwritten since.
        Returns the ids that DynamoDB did not take in time.

        Raises:
            InFlight: the idempotency claim among the parts was lost.
            OtherGeneration: a row is of another model version of the same name.
        """
        moment = timestamp(now())
        # What was noted of an earlier model version of the name was removed with that.
        names = {
            start: f"{model.generation}_{start}" if model.generation else str(start)
            for start in range(0, len(rows), _ONCE_ROWS)
        }
        waiting = [start for start, name in names.items() if name not in noted]
        until = asyncio.get_running_loop().time() + self._ingest.batch_deadline_s
        try:
            while waiting and asyncio.get_running_loop().time() < until:
                start = waiting[0]
                parts = [
                    transactions.put(
                        self._table,
                        live_row(embedding_of(model, product_id, vector, moment), model),
                        writable(model),
                    )
                    for product_id, vector in rows[start : start + _ONCE_ROWS]
                ]
                try:
                    await transactions.transact(self._dynamo, note(names[start]), *parts)
                except TransactionFailed as failed:
                    if refused(failed, 0):
                        raise lost() from None
                    raise other_generation(model) from None
                del waiting[0]
        except TableMissing:
            raise
        except Unavailable:
            pass  # whether that one happened is not known; the next try finds its note, or none
        return [one for start in waiting for one, _ in rows[start : start + _ONCE_ROWS]]

    async def _state(self, model_version: str, product_id: str) -> Item | None:
        """Whether a row is there, deleted, and when it changed; without its vector."""
        reply = await self._dynamo.call(
            "get_item",
            TableName=self._table,
            Key=row_key(model_version, product_id),
            ConsistentRead=True,
            **expressions(projection=("updated_at", "deleted_at", GENERATION)),
        )
        item: Item | None = reply.get("Item")
        return item

    async def _transacted(self, part: Part, also: Sequence[Part]) -> bool:
        """False where the first part was refused.

        Raises:
            InFlight: another part was refused: the idempotency claim is lost.
        """
        try:
            await transactions.transact(self._dynamo, part, *also)
        except TransactionFailed as failed:
            if refused(failed, 0):
                return False
            raise lost() from None
        return True
