"""Embeddings: rows of the embeddings table, and the parallel reader of a model version."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from time import monotonic
from types import MappingProxyType
from typing import Any, Final, cast

from core.attributes.values import Attributes
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import above, equals, exists, expressions, missing
from core.dynamo.pagination import paginate
from core.dynamo.rows import delete_rows, get_row, update_row
from core.dynamo.wire import Item
from core.errors import ConditionFailed, TransactionFailed, Unavailable
from core.models import Embedding, Model, now, timestamp
from core.repositories import transactions
from core.repositories.attribute_items import (
    attached,
    attributes_item,
    attributes_key,
    attributes_tombstone,
)
from core.repositories.batch_writes import BatchWrite, Transactions, grouped
from core.repositories.embedding_reads import read_row, read_rows, with_attributes
from core.repositories.embedding_rows import (
    GENERATION,
    PULLED,
    WITHOUT_VECTOR,
    EmbeddingPosition,
    PulledRow,
    decode,
    decode_any,
    decode_pulled,
    generation_of,
    live_row,
    of_generation,
    other_generation,
    position_after,
    row_key,
    start_key,
    tombstone_update,
    unchanged,
    unknown,
    writable,
)
from core.repositories.idempotency import Claim, completion
from core.results import DeletedEmbedding, StoredEmbedding
from core.settings import Settings

_LIST_ROWS = 100
"""Keys looked at a query of a listing, tombstones among them."""
_LIST_QUERIES = 10
"""Queries a page, beyond one a shard."""
_CHANGED_SHARDS = 2
"""Shards that are read concurrently for changes."""

_NO_ATTRIBUTES: Final[Mapping[str, Attributes]] = MappingProxyType({})

_Pages = asyncio.Queue[list[Embedding] | Exception | None]


class EmbeddingRepository:
    """The embeddings table. A deleted row stays as a tombstone, which reads do not show."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.EMBEDDINGS.name)
        self._ingest = settings.ingest
        self._patience_s = settings.aws.deadline_s

    async def store_embedding(
        self,
        model: Model,
        product_id: str,
        vector: bytes,
        claim: Claim | None = None,
        attributes: Attributes | None = None,
    ) -> StoredEmbedding:
        """Puts one row; in a transaction with the result under a claim, and with attributes.

        `vector` is float32 little-endian of the model version's dimension. Without `attributes`
        those that it has stay.

        Raises:
            OtherGeneration: the row is of another model version of the same name.
            InFlight: the claim was lost.
            Unavailable: in a transaction, others kept writing the same row.
        """
        if claim is not None or attributes is not None:
            return await self._store_together(model, product_id, vector, claim, attributes)
        written_at = timestamp(now())
        try:
            reply = await self._dynamo.call(
                "put_item",
                TableName=self._table,
                Item=live_row(model, product_id, vector, written_at),
                ReturnValues="ALL_OLD",
                **expressions(condition=writable(model)),
            )
        except ConditionFailed:
            raise other_generation(model) from None
        return _stored(model, product_id, written_at, reply.get("Attributes"))

    async def _store_together(
        self,
        model: Model,
        product_id: str,
        vector: bytes,
        claim: Claim | None,
        attributes: Attributes | None,
    ) -> StoredEmbedding:
        row = row_key(model.model_version, product_id)
        async for _ in transactions.CONFLICTS.attempts():
            before = await get_row(
                self._dynamo, self._table, row, ("updated_at", "deleted_at", GENERATION)
            )
            if before is not None and generation_of(before) != model.generation:
                raise other_generation(model)
            written_at = timestamp(now())
            stored = _stored(model, product_id, written_at, before)
            item = live_row(model, product_id, vector, written_at)
            parts = [transactions.put(self._table, item, unchanged(before))]
            if attributes is not None:
                own = attributes_item(model, product_id, attributes, written_at)
                parts.append(transactions.put(self._table, own))
            try:
                await transactions.transact(self._dynamo, *parts, also=completion(claim, stored))
            except TransactionFailed:
                continue  # the row has changed since it was read
            return stored
        raise Unavailable("others kept writing the same row; try again")

    async def store_batch(
        self,
        model: Model,
        rows: Sequence[tuple[str, bytes]],
        until: float | None = None,
        claim: Claim | None = None,
        attributes: Mapping[str, Attributes] = _NO_ATTRIBUTES,
    ) -> list[str]:
        """Puts many rows, each id once; returns the ids that DynamoDB did not take in time.

        Rows with attributes, which are by product id, are put in transactions with them. All others
        are put without a condition unless there is a claim, and by no call that begins or lasts
        after `until` (`time.monotonic`); see `ModelRepository.batch_until`. Under a claim each row
        is put once, however often the batch is sent.

        Raises:
            InFlight: the claim was lost.
            OtherGeneration: in a transaction, a row is of another model version of the same name.
        """
        written_at = timestamp(now())
        items = [live_row(model, product_id, vector, written_at) for product_id, vector in rows]
        own = {
            product_id: attributes_item(model, product_id, each, written_at)
            for product_id, each in attributes.items()
        }
        ids = [product_id for product_id, _ in rows]
        deadline_s = self._ingest.batch_deadline_s
        together = Transactions(self._dynamo, self._table, model, deadline_s)
        if claim is not None:
            return await together.write_once(grouped(ids, items, own), claim)
        left_s = deadline_s if until is None else min(deadline_s, until - monotonic())
        writing = BatchWrite(self._dynamo, self._table, left_s, self._patience_s)
        concurrency = self._ingest.batch_concurrency
        if not own:
            return await writing.run(items, concurrency)
        groups = grouped(ids, items, own)
        unstored = await writing.run([group[0] for group in groups if len(group) == 1], concurrency)
        with_own = [group for group in groups if len(group) > 1]
        return unstored + await together.write(with_own, concurrency)

    async def get_embedding(
        self, model_version: str, product_id: str, generation: int | None = None
    ) -> Embedding:
        """One row with its attributes, read consistently; of a generation alone, if one is given.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        item, attributes = await read_row(self._dynamo, self._table, model_version, product_id)
        if item is None or "deleted_at" in item or generation not in {None, generation_of(item)}:
            raise unknown(model_version, product_id)
        return attached(decode(item), attributes)

    async def delete_embedding(
        self, model: Model, product_id: str, claim: Claim | None = None
    ) -> DeletedEmbedding:
        """Turns a row into a tombstone, and its attributes if the model is noted to have any.

        Raises:
            NotFound: there is no such row, or it was deleted before.
            InFlight: the claim was lost.
        """
        deleted = DeletedEmbedding(product_id, timestamp(now()), model.generation)
        change, lives = tombstone_update(model, deleted)
        row = row_key(model.model_version, product_id)
        parts = [transactions.update(self._table, row, change, lives)]
        if model.has_attributes:
            own = attributes_tombstone(model, product_id, deleted.deleted_at)
            parts.append(transactions.put(self._table, own))
        elif claim is None:
            if not await update_row(self._dynamo, self._table, row, change, lives):
                raise unknown(model.model_version, product_id)
            return deleted
        try:
            await transactions.transact(self._dynamo, *parts, also=completion(claim, deleted))
        except TransactionFailed:
            raise unknown(model.model_version, product_id) from None
        return deleted

    async def delete_attributes(self, model: Model, deleted: DeletedEmbedding) -> None:
        """Deletes the attributes of a row that was deleted before its model version had any."""
        own = attributes_tombstone(model, deleted.product_id, deleted.deleted_at)
        await self._dynamo.call("put_item", TableName=self._table, Item=own)

    async def list_embeddings(
        self,
        model: Model,
        *,
        limit: int,
        position: EmbeddingPosition | None = None,
        vectors: bool = True,
    ) -> tuple[list[Embedding], EmbeddingPosition | None]:
        """Up to `limit` rows and the position to continue from, shard by shard, oldest first.

        A page is short, or empty, where very many rows in a row are tombstones. The rows have their
        attributes, read consistently, where the model version is noted to have any.
        """
        found, further = await self._list_rows(model, limit, position, vectors=vectors)
        if model.has_attributes:
            found = await with_attributes(self._dynamo, self._table, found)
        return found, further

    async def _list_rows(
        self, model: Model, limit: int, position: EmbeddingPosition | None, *, vectors: bool
    ) -> tuple[list[Embedding], EmbeddingPosition | None]:
        at = position or EmbeddingPosition(generation=model.generation)
        found: list[Embedding] = []
        for _ in range(model.shards + _LIST_QUERIES):
            if at.shard >= model.shards:
                return found, None
            start = start_key(model, at)
            parameters = self._parameters(model, at.shard, live=True, vectors=vectors)
            if start is not None:
                parameters["ExclusiveStartKey"] = start
            reply = await self._dynamo.call("query", Limit=max(limit, _LIST_ROWS), **parameters)
            for item in reply["Items"]:
                found.append(decode_any(item))
                at = position_after(model, at.shard, item)
                if len(found) == limit:
                    return found, at
            last = reply.get("LastEvaluatedKey")
            at = (
                position_after(model, at.shard, last)
                if last
                else EmbeddingPosition(at.shard + 1, generation=model.generation)
            )
        return found, at if at.shard < model.shards else None

    async def has_rows(self, model: Model) -> bool:
        """Whether the model version has a row that is not a tombstone."""
        for shard in range(model.shards):
            parameters = self._parameters(model, shard, live=True, vectors=False)
            async with aclosing(paginate(self._dynamo.call, "query", **parameters)) as pages:
                async for items in pages:
                    if items:
                        return True
        return False

    async def read_rows(
        self, model_version: str, product_ids: Sequence[str], generation: int | None = None
    ) -> list[Embedding]:
        """Those of these rows that are there, tombstones too; see `embedding_reads`."""
        return await read_rows(self._dynamo, self._table, model_version, product_ids, generation)

    async def remove_rows(self, rows: Iterable[Embedding]) -> int:
        """Removes rows that are still of the generation that was read; how many that were.

        Raises:
            Unavailable: DynamoDB did not take it in time; the rest is left for another time.
        """
        conditional = (
            (
                row_key(row.model_version, row.product_id),
                exists("product_id") & of_generation(row.generation),
            )
            for row in rows
        )
        return await delete_rows(
            self._dynamo, self._table, conditional, self._ingest.batch_concurrency
        )

    async def remove_tombstones(self, model_version: str, tombstones: Mapping[str, str]) -> int:
        """Removes those that are still the same, and returns their number.

        They are product ids with the time of their deletion. A product that was written again, or
        deleted a second time, stays. Those of their attributes are removed as well.

        Raises:
            Unavailable: DynamoDB did not take it in time; the remaining rows stay.
        """
        removed = [
            await delete_rows(
                self._dynamo,
                self._table,
                (
                    (key_of(model_version, product_id), equals("deleted_at", deleted_at))
                    for product_id, deleted_at in tombstones.items()
                ),
                self._ingest.batch_concurrency,
            )
            for key_of in (attributes_key, row_key)
        ]
        return removed[1]

    def changed_since(self, model: Model, since: str) -> AsyncGenerator[list[Embedding], None]:
        """Pages of the rows changed after a time, as far as the index shows them."""
        return self.get_embeddings_by_model(model, since)

    async def get_embeddings_by_model(
        self, model: Model, since: str | None = None, *, vectors: bool = True
    ) -> AsyncGenerator[list[Embedding], None]:
        """Every row of a model version, tombstones too, a page at a time, with or without vectors.

        All shards are read concurrently, for changes a few at a time. Within a shard, rows are in
        the order of their last change: of two reads of a product the later one is newer. At most
        one page per shard is in memory.
        """
        pages: _Pages = asyncio.Queue(maxsize=1)
        # A poll for changes runs beside requests: few concurrent pages are enough.
        gate = asyncio.Semaphore(model.shards if since is None else _CHANGED_SHARDS)
        readers = [
            asyncio.create_task(self._read(model, shard, pages, gate, since, vectors=vectors))
            for shard in range(model.shards)
        ]
        try:
            open_shards = len(readers)
            while open_shards:
                page = await pages.get()
                if isinstance(page, Exception):
                    raise page
                if page is None:
                    open_shards -= 1
                elif page:
                    yield page
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read(
        self,
        model: Model,
        shard: int,
        pages: _Pages,
        gate: asyncio.Semaphore,
        since: str | None,
        *,
        vectors: bool,
    ) -> None:
        """Puts the pages of one shard, then None; or the error that ended it."""
        parameters = self._parameters(model, shard, since=since, vectors=vectors)
        try:
            reading = paginate(self._dynamo.call, "query", gate=gate, parser=PULLED, **parameters)
            async for rows in cast("AsyncGenerator[list[PulledRow], None]", reading):
                await pages.put([decode_pulled(row) for row in rows])
        except Exception as error:  # noqa: BLE001 - raised where the pages are taken
            await pages.put(error)
        else:
            await pages.put(None)

    def _parameters(
        self,
        model: Model,
        shard: int,
        *,
        live: bool = False,
        vectors: bool = True,
        since: str | None = None,
    ) -> dict[str, Any]:
        partition = tables.model_shard(model.model_version, shard, model.generation)
        within = equals(tables.MODEL_SHARD, partition)
        return {
            "TableName": self._table,
            "IndexName": tables.MODEL_VERSION_INDEX,
            **expressions(
                key=within if since is None else within & above("updated_at", since),
                filtered=missing("deleted_at") if live else None,
                projection=None if vectors else WITHOUT_VECTOR,
            ),
        }


def _stored(model: Model, product_id: str, written_at: str, before: Item | None) -> StoredEmbedding:
    created = before is None or "deleted_at" in before
    return StoredEmbedding(product_id, model.dimension, written_at, model.generation, created)
