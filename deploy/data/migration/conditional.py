"""Rows of older data, put beside or over what is there, never over something newer unseen."""

from typing import Final

import msgspec

from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, equals, exists, expressions, missing
from core.dynamo.wire import Item, RequestItem
from core.errors import ConditionFailed

_TELLING: Final = (
    "user_id",
    "version",
    "created_at",
    "updated_at",
    "deleting_at",
    "deleted_at",
    "model_shard",
)
"""Attributes of which at least one changes with each write of a row, whichever its table."""


class Met(msgspec.Struct, frozen=True):
    """The row is there, or has changed since it was read."""

    item: Item | None
    """As it is now; None where it is gone."""


async def put_over(
    dynamo: Dynamo, table: str, key: str, item: RequestItem, there: Item | None
) -> Met | None:
    """Puts an item where the row is as it was read, or as absent.

    Args:
        dynamo: The client.
        table: The table's full name.
        key: The table's partition key.
        item: What to put.
        there: The row as it was read; None: there is none.

    Returns:
        None when the item was put, else what was there instead.
    """
    try:
        await dynamo.call(
            "put_item",
            TableName=table,
            Item=item,
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **expressions(condition=_same(key, there)),
        )
    except ConditionFailed as failed:
        return Met(failed.item if isinstance(failed.item, dict) else None)
    return None


def _same(key: str, there: Item | None) -> Condition:
    if there is None:
        return missing(key)
    condition = exists(key)
    for name in _TELLING:
        condition &= equals(name, there[name]) if name in there else missing(name)
    return condition
