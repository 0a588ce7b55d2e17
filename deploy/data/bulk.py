"""Whole tables: read in parallel segments, written and emptied in batches.

Items are passed on as they were parsed, of whatever attribute types. Every function raises
TableMissing at once if there is no such table, and Unavailable if DynamoDB did not answer, or did
not take everything, after all attempts.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from core.concurrency import gather
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import expressions
from core.dynamo.pagination import paginate
from core.dynamo.wire import Item
from core.errors import TableMissing, Unavailable
from core.retry import RetryPolicy
from core.settings import Settings
from deploy.callbacks import ProgressCallback

T = TypeVar("T")

BATCH_ROWS: Final = 25
"""The most that one BatchWriteItem takes."""
SEGMENTS: Final = 8
"""Segments of a table that are read in parallel."""
_RETRY: Final = RetryPolicy(first_s=0.05, max_s=5.0, attempts_max=10, jitter=0.5)


async def retried(action: Callable[[], Awaitable[T]]) -> T:
    """The result of `action`, which is retried while DynamoDB is busy or cannot be reached."""
    return await _RETRY.call(action, on=Unavailable, never=TableMissing)


async def _call(dynamo: Dynamo, operation: str, **parameters: Any) -> dict[str, Any]:
    return await retried(partial(dynamo.call, operation, **parameters))


async def scan_segment(
    dynamo: Dynamo,
    table: str,
    segment: int = 0,
    segments: int = 1,
    *,
    attributes: Sequence[str] | None = None,
    consistent: bool = True,
) -> AsyncIterator[list[Item]]:
    """The pages of one segment of a table.

    Args:
        dynamo: The client.
        table: The table's full name.
        segment: Which segment, from 0.
        segments: How many there are.
        attributes: Those to read; None: all.
        consistent: Whether reads are strongly consistent, at twice the price.
    """
    async for page in paginate(
        partial(_call, dynamo),
        "scan",
        TableName=table,
        Segment=segment,
        TotalSegments=segments,
        ConsistentRead=consistent,
        **expressions(projection=attributes),
    ):
        yield page


async def is_empty(dynamo: Dynamo, table: str) -> bool:
    """Whether a table has no item at all."""
    reply = await _call(dynamo, "scan", TableName=table, ConsistentRead=True, Limit=1)
    return not reply["Items"]


async def count_items(
    dynamo: Dynamo, settings: Settings, progress: ProgressCallback
) -> dict[str, int]:
    """How many items each table of the environment has, by its full name.

    It reads every table whole, which costs read units.
    """
    counts = {settings.table(table.name): 0 for table in tables.ALL}

    async def count(table: tables.Table, segment: int) -> None:
        name, keys = settings.table(table.name), table.key.attributes
        async for page in scan_segment(
            dynamo, name, segment, SEGMENTS, attributes=keys, consistent=False
        ):
            counts[name] += len(page)
            progress(name, counts[name])

    await gather(*(count(table, n) for table in tables.ALL for n in range(SEGMENTS)))
    return counts


async def get_batch(
    dynamo: Dynamo,
    table: str,
    key: tables.Key,
    items: Sequence[Item],
    attributes: Sequence[str] | None = None,
) -> list[Item]:
    """The rows of up to 100 keys, read consistently, in any order; missing ones are left out.

    Args:
        dynamo: The client.
        table: The table's full name.
        key: The table's key.
        items: Rows of another table, by whose key attributes rows are looked up.
        attributes: Those to read; None: all.
    """
    asked: dict[str, Any] = {
        "Keys": [{name: item[name] for name in key.attributes} for item in items],
        "ConsistentRead": True,
        **expressions(projection=attributes),
    }
    found: list[Item] = []
    async for _ in _RETRY.attempts():
        reply = await _call(dynamo, "batch_get_item", RequestItems={table: asked})
        found += reply["Responses"].get(table, [])
        asked["Keys"] = reply.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
        if not asked["Keys"]:
            return found
    left = len(asked["Keys"])
    raise Unavailable(f"DynamoDB did not read {left} items of {table} after all attempts")


async def put_batch(dynamo: Dynamo, table: str, items: Sequence[Item]) -> None:
    """Puts up to 25 items of different keys, replacing existing ones."""
    await _write_batch(dynamo, table, [{"PutRequest": {"Item": item}} for item in items])


async def delete_batch(dynamo: Dynamo, table: str, key: tables.Key, items: Sequence[Item]) -> None:
    """Deletes up to 25 items by the key attributes in them."""
    keys = [{name: item[name] for name in key.attributes} for item in items]
    await _write_batch(dynamo, table, [{"DeleteRequest": {"Key": key}} for key in keys])


async def _write_batch(dynamo: Dynamo, table: str, requests: list[dict[str, Any]]) -> None:
    async for _ in _RETRY.attempts():
        reply = await _call(dynamo, "batch_write_item", RequestItems={table: requests})
        requests = reply.get("UnprocessedItems", {}).get(table, [])
        if not requests:
            return
    raise Unavailable(
        f"DynamoDB did not take {len(requests)} items of {table} after all attempts",
        public=f"DynamoDB did not take {len(requests)} items after all attempts",
    )
