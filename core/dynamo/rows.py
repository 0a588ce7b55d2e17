"""Reading and writing single rows: consistent reads, and writes under a condition."""

from collections.abc import Awaitable, Iterable

from core.concurrency import gather
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, expressions
from core.dynamo.wire import Item, RequestItem
from core.errors import ConditionFailed


async def get_row(
    dynamo: Dynamo, table: str, key: RequestItem, attributes: Iterable[str] | None = None
) -> Item | None:
    """The row of a key, or some of its attributes, read consistently; None where there is none."""
    projection = {} if attributes is None else expressions(projection=attributes)
    reply = await dynamo.call(
        "get_item", TableName=table, Key=key, ConsistentRead=True, **projection
    )
    item: Item | None = reply.get("Item")
    return item


async def put_row(dynamo: Dynamo, table: str, item: RequestItem, condition: Condition) -> bool:
    """Puts a row; False where the condition is not met."""
    held = expressions(condition=condition)
    return await _is_met(dynamo.call("put_item", TableName=table, Item=item, **held))


async def update_row(
    dynamo: Dynamo, table: str, key: RequestItem, update: Update, condition: Condition
) -> bool:
    """Updates a row; False where the condition is not met."""
    changed = expressions(update=update, condition=condition)
    return await _is_met(dynamo.call("update_item", TableName=table, Key=key, **changed))


async def delete_row(dynamo: Dynamo, table: str, key: RequestItem, condition: Condition) -> bool:
    """Deletes a row; False where the condition is not met."""
    held = expressions(condition=condition)
    return await _is_met(dynamo.call("delete_item", TableName=table, Key=key, **held))


async def _is_met(write: Awaitable[object]) -> bool:
    try:
        await write
    except ConditionFailed:
        return False
    return True


async def delete_rows(
    dynamo: Dynamo, table: str, rows: Iterable[tuple[RequestItem, Condition]], concurrency: int
) -> int:
    """Deletes many rows, each under its own condition; the number of those that were deleted.

    A batch would take fewer requests, and takes no condition.

    Raises:
        Unavailable: DynamoDB did not take it in time; the remaining rows stay.
    """
    remaining = iter(rows)
    deleted = 0

    async def worker() -> None:
        nonlocal deleted
        for key, condition in remaining:
            is_deleted = await delete_row(dynamo, table, key, condition)
            deleted += is_deleted  # not in the line before: the others count meanwhile

    await gather(*(worker() for _ in range(concurrency)))
    return deleted
