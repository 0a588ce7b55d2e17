"""Whole tables: read in parallel segments, written and emptied by batches, with bounded patience.

Items pass as they came off the wire, of whatever attribute types.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from core.dynamo.client import Dynamo
from core.dynamo.expressions import expressions
from core.dynamo.tables import Key
from core.dynamo.wire import Item, request_item
from core.errors import TableMissing, Unavailable

T = TypeVar("T")

BATCH_ROWS: Final = 25
"""The most that one BatchWriteItem takes."""
_TRIES: Final = 10
_BACKOFF_FIRST_S, _BACKOFF_MAX_S = 0.05, 5.0


async def patiently(act: Callable[[], Awaitable[T]]) -> T:
    """What `act` comes to, tried again with backoff while DynamoDB is busy or out of reach.

    Raises:
        TableMissing: at once.
        Unavailable: after the last try.
    """
    for attempt in range(_TRIES - 1):
        try:
            return await act()
        except TableMissing:
            raise
        except Unavailable:
            await _pause(attempt)
    return await act()


async def scan_segment(
    dynamo: Dynamo,
    table: str,
    segment: int,
    segments: int,
    *,
    attributes: Sequence[str] | None = None,
) -> AsyncIterator[list[Item]]:
    """The pages of one segment of a table, read consistently; only some attributes where given.

    Raises:
        TableMissing: the table is not there.
        Unavailable: DynamoDB did not answer after all tries.
    """
    parameters: dict[str, Any] = {
        "TableName": table,
        "Segment": segment,
        "TotalSegments": segments,
        "ConsistentRead": True,
        **expressions(projection=attributes),
    }
    while True:
        reply = await patiently(partial(dynamo.call, "scan", **parameters))
        yield reply["Items"]
        if "LastEvaluatedKey" not in reply:
            return
        parameters["ExclusiveStartKey"] = request_item(reply["LastEvaluatedKey"])


async def is_empty(dynamo: Dynamo, table: str) -> bool:
    """Whether a table has no item at all.

    Raises:
        TableMissing: the table is not there.
        Unavailable: DynamoDB did not answer after all tries.
    """
    reply = await patiently(
        lambda: dynamo.call("scan", TableName=table, ConsistentRead=True, Limit=1)
    )
    return not reply["Items"]


async def put_batch(dynamo: Dynamo, table: str, items: Sequence[Item]) -> None:
    """Puts up to 25 items of different keys, over whatever is there.

    Raises:
        TableMissing: the table is not there.
        Unavailable: some were not taken after all tries.
    """
    await _write_batch(dynamo, table, [{"PutRequest": {"Item": item}} for item in items])


async def delete_batch(dynamo: Dynamo, table: str, key: Key, items: Sequence[Item]) -> None:
    """Deletes up to 25 items by the key attributes in them.

    Raises:
        TableMissing: the table is not there.
        Unavailable: some were not taken after all tries.
    """
    keys = [{name: item[name] for name in key.attributes} for item in items]
    await _write_batch(dynamo, table, [{"DeleteRequest": {"Key": key}} for key in keys])


async def _write_batch(dynamo: Dynamo, table: str, requests: list[dict[str, Any]]) -> None:
    for attempt in range(_TRIES):
        parameters = {"RequestItems": {table: requests}}
        reply = await patiently(partial(dynamo.call, "batch_write_item", **parameters))
        requests = reply.get("UnprocessedItems", {}).get(table, [])
        if not requests:
            return
        await _pause(attempt)
    raise Unavailable(
        f"DynamoDB did not take {len(requests)} items of {table} after all tries",
        public=f"DynamoDB did not take {len(requests)} items after all tries",
    )


async def _pause(attempt: int) -> None:
    longest_s = min(_BACKOFF_FIRST_S * 2**attempt, _BACKOFF_MAX_S)
    await asyncio.sleep(random.uniform(longest_s / 2, longest_s))  # noqa: S311 - jitter
