"""Embeddings: rows of the embeddings table, and the parallel reader of a model version."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import above, equals, exists, expressions, missing
from core.dynamo.pagination import paginate
from core.dynamo.rows import delete_rows, get_row
from core.dynamo.wire import Item, RequestItem
from core.errors import ConditionFailed, TransactionFailed, Unavailable
from core.models import Embedding, Model, now, timestamp
from core.repositories import transactions
from core.repositories.batch_writes import BatchWrite, write_once
from core.repositories.embedding_reads import read_rows
from core.repositories.embedding_rows import (
    GENERATION,
    WITHOUT_VECTOR,
    decode,
    decode_any,
    generation_of,
    live_row,
    of_generation,
    other_generation,
    row_key,
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

_Pages = asyncio.Queue[list[Embedding] | Exception | None]


class EmbeddingPosition(msgspec.Struct, frozen=True):
    """A position in a list of embeddings: a shard, and the last key that was read of it."""

    shard: int = 0
    updated_at: str | None = None
    product_id: str | None = None
    generation: int = 0
    """Of the model version that is listed."""


class EmbeddingRepository:
    """The embeddings table. A deleted row stays as a tombstone, which reads do not show."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.EMBEDDINGS.name)
        self._ingest = settings.ingest
        self._patience_s = settings.aws.deadline_s

    async def store_embedding(
        self, model: Model, product_id: str, vector: bytes, claim: Claim | None = None
    ) -> StoredEmbedding:
        """Puts one row; under a claim in a transaction with the result.

        `vector` is float32 little-endian of the model version's dimension.

        Raises:
            OtherGeneration: the row is of another model version of the same name.
            InFlight: the claim was lost.
            Unavailable: under a claim, others kept writing the same row.
        """
        if claim is not None:
            return await self._store_once(model, product_id, vector, claim)
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

    async def _store_once(
        self, model: Model, product_id: str, vector: bytes, claim: Claim
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
            try:
                await transactions.transact(
                    self._dynamo,
                    transactions.put(self._table, item, unchanged(before)),
                    also=completion(claim, stored),
                )
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
    ) -> list[str]:
        """Puts many rows, each id once; returns the ids that DynamoDB did not take in time.

        Without a claim they are put without a condition, and by no call that begins or lasts after
        `until` (`time.monotonic`); see `ModelRepository.batch_until`. Under a claim each row is put
        once, however often the batch is sent.

        Raises:
            InFlight: the claim was lost.
            OtherGeneration: under a claim, a row is of another model version of the same name.
        """
        written_at = timestamp(now())
        items = [live_row(model, product_id, vector, written_at) for product_id, vector in rows]
        if claim is not None:
            return await write_once(
                self._dynamo, self._table, model, items, claim, self._ingest.batch_deadline_s
            )
        left_s = self._ingest.batch_deadline_s
        if until is not None:
            left_s = min(left_s, until - monotonic())
        writing = BatchWrite(self._dynamo, self._table, left_s, self._patience_s)
        return await writing.run(items, self._ingest.batch_concurrency)

    async def get_embedding(
        self, model_version: str, product_id: str, generation: int | None = None
    ) -> Embedding:
        """One row, read consistently; where a generation is given, of that one alone.

        Raises:
            NotFound: there is none, or it was deleted.
        """
        item = await get_row(self._dynamo, self._table, row_key(model_version, product_id))
        if item is None or "deleted_at" in item or generation not in {None, generation_of(item)}:
            raise unknown(model_version, product_id)
        return decode(item)

    async def delete_embedding(
        self, model: Model, product_id: str, claim: Claim | None = None
    ) -> DeletedEmbedding:
        """Turns a row into a tombstone, which running indexes learn of.

        Raises:
            NotFound: there is no such row, or it was deleted before.
            InFlight: the claim was lost.
        """
        deleted = DeletedEmbedding(product_id, timestamp(now()), model.generation)
        change, lives = tombstone_update(model, deleted)
        row = row_key(model.model_version, product_id)
        try:
            if claim is None:
                await self._dynamo.call(
                    "update_item",
                    TableName=self._table,
                    Key=row,
                    **expressions(update=change, condition=lives),
                )
            else:
                await transactions.transact(
                    self._dynamo,
                    transactions.update(self._table, row, change, lives),
                    also=completion(claim, deleted),
                )
        except (ConditionFailed, TransactionFailed):
            raise unknown(model.model_version, product_id) from None
        return deleted

    async def list_embeddings(
        self,
        model: Model,
        *,
        limit: int,
        position: EmbeddingPosition | None = None,
        vectors: bool = True,
    ) -> tuple[list[Embedding], EmbeddingPosition | None]:
        """Up to `limit` rows and the position to continue from, shard by shard, oldest first.

        A page is short, or empty, where very many rows in a row are tombstones.
        """
        at = position or EmbeddingPosition(generation=model.generation)
        found: list[Embedding] = []
        for _ in range(model.shards + _LIST_QUERIES):
            if at.shard >= model.shards:
                return found, None
            start = _start(model, at)
            reply = await self._dynamo.call(
                "query",
                Limit=max(limit, _LIST_ROWS),
                **({"ExclusiveStartKey": start} if start else {}),
                **self._parameters(model, at.shard, live=True, vectors=vectors),
            )
            for item in reply["Items"]:
                found.append(decode_any(item))
                at = _after(model, at.shard, item)
                if len(found) == limit:
                    return found, at
            last = reply.get("LastEvaluatedKey")
            at = (
                _after(model, at.shard, last)
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
        deleted a second time, stays.

        Raises:
            Unavailable: DynamoDB did not take it in time; the remaining rows stay.
        """
        rows = (
            (row_key(model_version, product_id), equals("deleted_at", deleted_at))
            for product_id, deleted_at in tombstones.items()
        )
        return await delete_rows(self._dynamo, self._table, rows, self._ingest.batch_concurrency)

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
            async for items in paginate(self._dynamo.call, "query", gate=gate, **parameters):
                await pages.put([decode_any(item) for item in items])
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


def _start(model: Model, at: EmbeddingPosition) -> RequestItem | None:
    if at.product_id is None or at.updated_at is None:
        return None
    return {
        **row_key(model.model_version, at.product_id),
        tables.MODEL_SHARD: {
            "S": tables.model_shard(model.model_version, at.shard, model.generation)
        },
        "updated_at": {"S": at.updated_at},
    }


def _after(model: Model, shard: int, last: Item) -> EmbeddingPosition:
    return EmbeddingPosition(shard, last["updated_at"].S, last["product_id"].S, model.generation)
