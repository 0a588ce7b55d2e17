"""Attributes of embeddings: changed alone, and removed with their model version."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from core.attributes.values import AttributesPatch, attribute_problems, merge
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import above, equals, exists, expressions
from core.dynamo.pagination import paginate
from core.dynamo.rows import delete_rows, get_row, put_row
from core.dynamo.wire import Item, RequestItem
from core.errors import Invalid, TransactionFailed, Unavailable
from core.models import Model, StoredAttributes, now, timestamp
from core.repositories import transactions
from core.repositories.attribute_items import (
    attributes_item,
    attributes_key,
    is_same,
    stored_attributes,
    unread_attributes,
)
from core.repositories.embedding_reads import read_items
from core.repositories.embedding_rows import (
    GENERATION,
    generation_of,
    of_generation,
    row_key,
    unknown,
)
from core.repositories.idempotency import Claim, completion
from core.results import PatchedAttributes
from core.retry import RetryPolicy
from core.settings import Settings

_CHANGED_MEANWHILE: Final = RetryPolicy(first_s=0.02, max_s=0.3, attempts_max=25)
"""Of one item that many change at once, each attempt of all lets one of them through."""


class AttributeRepository:
    """The attributes in the embeddings table. What is stored with a vector is written there."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.EMBEDDINGS.name)
        self._concurrency = settings.ingest.batch_concurrency

    async def find_row(self, model: Model, product_id: str) -> None:
        """Checks that there is a live row of this generation, by a consistent read.

        Raises:
            NotFound: there is none.
        """
        where = row_key(model.model_version, product_id)
        row = await get_row(
            self._dynamo, self._table, where, ("product_id", "deleted_at", GENERATION)
        )
        if row is None or "deleted_at" in row or generation_of(row) != model.generation:
            raise unknown(model.model_version, product_id)

    async def patch_attributes(
        self, model: Model, product_id: str, patch: AttributesPatch, claim: Claim | None = None
    ) -> PatchedAttributes:
        """Applies a merge patch to the attributes of one embedding, and to nothing else.

        It costs the same write units at every dimension: the row is only read. It is read after
        the attributes, and a deletion changes both in one transaction; so if the attributes are
        the same when they are written, the row was not deleted since.

        Raises:
            NotFound: there is no such embedding, or it was deleted.
            Invalid: with the changes, the attributes are over a limit.
            InFlight: the claim was lost.
            Unavailable: others kept changing the same attributes.
        """
        where = attributes_key(model.model_version, product_id)
        async for _ in _CHANGED_MEANWHILE.attempts():
            before = await get_row(self._dynamo, self._table, where)
            await self.find_row(model, product_id)
            merged = merge(stored_attributes(before, model.generation), patch)
            problems = attribute_problems(merged)
            if problems:
                raise Invalid.of(*problems)
            patched = PatchedAttributes(product_id, merged, timestamp(now()), model.generation)
            item = attributes_item(model, product_id, merged, patched.updated_at, alone=True)
            if await self._put(item, before, patched, claim):
                return patched
        raise Unavailable("others kept changing the same attributes; try again")

    async def _put(
        self,
        item: RequestItem,
        before: Item | None,
        patched: PatchedAttributes,
        claim: Claim | None,
    ) -> bool:
        """Puts an item in place of the one that was read; False where that has changed."""
        if claim is None:
            return await put_row(self._dynamo, self._table, item, is_same(before))
        part = transactions.put(self._table, item, is_same(before))
        try:
            await transactions.transact(self._dynamo, part, also=completion(claim, patched))
        except TransactionFailed:
            return False
        return True

    async def read_attributes(
        self, model: Model, product_ids: Sequence[str]
    ) -> list[StoredAttributes]:
        """The attributes of these ids (each once) that there are, read consistently.

        Those of another generation are left out.

        Raises:
            Unavailable: DynamoDB did not give all of them in time.
        """
        keys = [attributes_key(model.model_version, product_id) for product_id in product_ids]
        items = await read_items(self._dynamo, self._table, keys)
        return [
            unread_attributes(item) for item in items if generation_of(item) == model.generation
        ]

    async def changed_since(
        self, model: Model, since: str
    ) -> AsyncGenerator[list[StoredAttributes], None]:
        """Pages of the attributes changed after a time, as far as the index shows them.

        Of all, where the time is empty. Those that were deleted are among them.
        """
        for shard in range(model.shards):
            partition = tables.attributes_shard(model.model_version, shard, model.generation)
            within = equals(tables.MODEL_SHARD, partition)
            pages = paginate(
                self._dynamo.call,
                "query",
                TableName=self._table,
                IndexName=tables.MODEL_VERSION_INDEX,
                **expressions(key=within & above("updated_at", since) if since else within),
            )
            async with aclosing(pages):
                async for items in pages:
                    if items:
                        yield [unread_attributes(item) for item in items]

    async def keys_by_model(self, model: Model) -> AsyncGenerator[list[Item], None]:
        """The keys and generations of all attributes of a model version, a page at a time.

        Tombstones are among them. The index is eventually consistent.
        """
        for shard in range(model.shards):
            partition = tables.attributes_shard(model.model_version, shard, model.generation)
            pages = paginate(
                self._dynamo.call,
                "query",
                TableName=self._table,
                IndexName=tables.MODEL_VERSION_INDEX,
                **expressions(
                    key=equals(tables.MODEL_SHARD, partition),
                    projection=(*tables.EMBEDDINGS.key.attributes, GENERATION),
                ),
            )
            async with aclosing(pages):
                async for items in pages:
                    if items:
                        yield items

    async def remove(self, items: Sequence[Item]) -> int:
        """Removes those that are still of the generation that was read; how many that were.

        Raises:
            Unavailable: DynamoDB did not take it in time; the rest is left for another time.
        """
        keys = tables.EMBEDDINGS.key.attributes
        rows = (
            (
                {name: {"S": item[name].S} for name in keys},
                exists("product_id") & of_generation(generation_of(item)),
            )
            for item in items
        )
        return await delete_rows(self._dynamo, self._table, rows, self._concurrency)
