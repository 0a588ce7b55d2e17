"""Reading many rows of a model version by their ids, as they are now."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from core import telemetry
from core.concurrency import gather
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.wire import Item, RequestItem
from core.errors import Corrupt, Unavailable
from core.models import Embedding
from core.repositories.attribute_items import attached, attributes_key
from core.repositories.embedding_rows import decode_any, row_key
from core.retry import RetryPolicy

_IDS_MAX: Final = 100
"""DynamoDB's, of one BatchGetItem."""
_CONCURRENT_READS: Final = 4
_log = telemetry.logger(__name__)
_UNPROCESSED: Final = RetryPolicy(first_s=0.05, max_s=1.0, attempts_max=6)


async def read_rows(
    dynamo: Dynamo,
    table: str,
    model_version: str,
    product_ids: Sequence[str],
    generation: int | None = None,
) -> list[Embedding]:
    """The rows of these ids (each once) that are there, tombstones too, read consistently.

    Those of another generation than the one that is given are left out.

    Raises:
        Unavailable: DynamoDB did not give all of them in time.
    """
    keys = [row_key(model_version, product_id) for product_id in product_ids]
    rows = map(decode_any, await read_items(dynamo, table, keys))
    return [row for row in rows if generation in {None, row.generation}]


async def read_row(
    dynamo: Dynamo, table: str, model_version: str, product_id: str
) -> tuple[Item | None, Item | None]:
    """The row of an id, and the item of its attributes, as one call finds both, consistently.

    Raises:
        Unavailable: DynamoDB did not give both in time.
    """
    keys = [row_key(model_version, product_id), attributes_key(model_version, product_id)]
    items = {item["model_version"].S: item for item in await read_items(dynamo, table, keys)}
    return items.get(model_version), items.get(tables.attributes_name(model_version))


async def with_attributes(dynamo: Dynamo, table: str, rows: Sequence[Embedding]) -> list[Embedding]:
    """These rows, of one model version, with their attributes.

    Attributes that cannot be read are left out, and stop no other row.

    Raises:
        Unavailable: DynamoDB did not give all of them in time.
    """
    if not rows:
        return []
    keys = [attributes_key(row.model_version, row.product_id) for row in rows]
    items = {item["product_id"].S: item for item in await read_items(dynamo, table, keys)}
    return [_attached(row, items.get(row.product_id)) for row in rows]


def _attached(row: Embedding, item: Item | None) -> Embedding:
    try:
        return attached(row, item)
    except Corrupt as error:
        _log.warning("attributes cannot be read", product_id=row.product_id, why=str(error))
        return row


async def read_items(dynamo: Dynamo, table: str, keys: Sequence[RequestItem]) -> list[Item]:
    """The items of these keys (each once) that are there, read consistently.

    Raises:
        Unavailable: DynamoDB did not give all of them in time.
    """
    gate = asyncio.Semaphore(_CONCURRENT_READS)

    async def read(start: int) -> list[Item]:
        async with gate:
            return await _read_call(dynamo, table, keys[start : start + _IDS_MAX])

    chunks = await gather(*(read(start) for start in range(0, len(keys), _IDS_MAX)))
    return [item for items in chunks for item in items]


async def _read_call(dynamo: Dynamo, table: str, keys: Sequence[RequestItem]) -> list[Item]:
    asked: dict[str, Any] = {"Keys": keys, "ConsistentRead": True}
    found: list[Item] = []
    async for _ in _UNPROCESSED.attempts():
        reply = await dynamo.call("batch_get_item", RequestItems={table: asked})
        found += reply.get("Responses", {}).get(table, ())
        left = reply.get("UnprocessedKeys", {}).get(table)
        if not left:
            return found
        asked = {**left, "ConsistentRead": True}
    raise Unavailable("DynamoDB did not return all rows in time")
