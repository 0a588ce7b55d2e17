"""Removing many rows of a table, each on a condition of its own."""

import asyncio
from collections.abc import Iterable

from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, expressions
from core.dynamo.wire import RequestItem
from core.errors import ConditionFailed


async def remove_where(
    dynamo: Dynamo, table: str, rows: Iterable[tuple[RequestItem, Condition]], concurrency: int
) -> int:
    """Removes the rows of these keys whose conditions hold; how many that were.

    A batch would be cheaper in requests, and takes no condition.

    Raises:
        Unavailable: DynamoDB did not take it in time; the rest is left for another time.
    """
    waiting = iter(rows)
    removed = 0

    async def worker() -> None:
        nonlocal removed
        for key, condition in waiting:
            try:
                await dynamo.call(
                    "delete_item", TableName=table, Key=key, **expressions(condition=condition)
                )
            except ConditionFailed:
                continue
            removed += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return removed
