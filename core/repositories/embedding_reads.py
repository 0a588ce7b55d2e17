"""Reading many rows of a model version by their ids, as they are now."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from core.concurrency import gather
from core.dynamo.client import Dynamo
from core.errors import Unavailable
from core.models import Embedding
from core.repositories.embedding_rows import decode_any, row_key
from core.retry import RetryPolicy

_IDS_MAX: Final = 100
"""DynamoDB's, of one BatchGetItem."""
_CONCURRENT_READS: Final = 4
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
    gate = asyncio.Semaphore(_CONCURRENT_READS)

    async def read(chunk: Sequence[str]) -> list[Embedding]:
        async with gate:
            return await _read(dynamo, table, model_version, chunk)

    starts = range(0, len(product_ids), _IDS_MAX)
    chunks = await gather(*(read(product_ids[start : start + _IDS_MAX]) for start in starts))
    return [row for rows in chunks for row in rows if generation in {None, row.generation}]


async def _read(
    dynamo: Dynamo, table: str, model_version: str, product_ids: Sequence[str]
) -> list[Embedding]:
    keys: dict[str, Any] = {
        "Keys": [row_key(model_version, product_id) for product_id in product_ids],
        "ConsistentRead": True,
    }
    found: list[Embedding] = []
    async for _ in _UNPROCESSED.attempts():
        reply = await dynamo.call("batch_get_item", RequestItems={table: keys})
        found += [decode_any(item) for item in reply.get("Responses", {}).get(table, ())]
        left = reply.get("UnprocessedKeys", {}).get(table)
        if not left:
            return found
        keys = {**left, "ConsistentRead": True}
    raise Unavailable("DynamoDB did not return all rows in time")
