"""Parts of a transaction, and what made one fail."""

from collections.abc import Sequence
from typing import Any

from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, expressions
from core.dynamo.wire import RequestItem
from core.errors import InFlight, TransactionFailed, Unavailable
from core.retry import RetryPolicy

Part = dict[str, Any]
"""One operation of TransactWriteItems."""

REFUSED = "ConditionalCheckFailed"
"""The reason of a part whose condition was not met."""

CONFLICTS = RetryPolicy(first_s=0.02, max_s=0.2, attempts_max=10)
"""For writes that conflict with another write of the same rows: read again, then write again."""


def refused(failed: TransactionFailed, position: int) -> bool:
    """Whether the condition of the part at this position was not met."""
    return position < len(failed.reasons) and failed.reasons[position] == REFUSED


def put(table: str, item: RequestItem, condition: Condition | None = None) -> Part:
    """Puts an item; a refusal has the existing one."""
    return _part("Put", table, condition, Item=item)


def update(
    table: str, key: RequestItem, change: Update, condition: Condition | None = None
) -> Part:
    """Updates an item; a refusal has the existing one."""
    return _part("Update", table, condition, change, Key=key)


def delete(table: str, key: RequestItem, condition: Condition | None = None) -> Part:
    """Deletes an item; a refusal has the existing one."""
    return _part("Delete", table, condition, Key=key)


def check(table: str, key: RequestItem, condition: Condition) -> Part:
    """Makes the whole transaction conditional on an item that it does not change."""
    return _part("ConditionCheck", table, condition, Key=key)


async def transact(dynamo: Dynamo, *parts: Part, also: Sequence[Part] = ()) -> None:
    """Writes all of the parts, or none. A conflict with another transaction is retried.

    `also` are the parts that belong to a claim on an idempotency key.

    Raises:
        TransactionFailed: the condition of one of `parts` was not met; with one reason per part,
            and the rows of those that were refused.
        InFlight: only the condition of the claim was not met: another request has taken it over.
        Unavailable: other transactions kept conflicting.
    """
    async for _ in CONFLICTS.attempts():
        try:
            await dynamo.call("transact_write_items", TransactItems=[*parts, *also])
        except TransactionFailed as failed:
            if REFUSED in failed.reasons[: len(parts)]:
                raise
            if REFUSED in failed.reasons:
                raise claim_lost() from None
        else:
            return
    raise Unavailable("other writes of the same rows kept conflicting; try again")


def claim_lost() -> InFlight:
    """The error of a claim that another request has taken over."""
    return InFlight("another request with this idempotency key took over; ask again for its answer")


def _part(
    kind: str,
    table: str,
    condition: Condition | None,
    change: Update | None = None,
    **what: RequestItem,
) -> Part:
    body: dict[str, Any] = {
        "TableName": table,
        **what,
        **expressions(condition=condition, update=change),
    }
    if condition is not None:
        body["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    return {kind: body}
