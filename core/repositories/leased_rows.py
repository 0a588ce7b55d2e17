"""Rows that one worker at a time works on, under a lease with a fencing token: builds and imports.

A claim raises the row's fence, and every write of its worker has the condition that the fence is
still the same: a worker that outlives its lease, or whose work was cancelled, changes nothing.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, Protocol, TypeVar

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, below, equals, expressions, key, one_of
from core.dynamo.pagination import paginate
from core.dynamo.rows import get_row
from core.dynamo.wire import Item, RequestItem
from core.errors import ConditionFailed, LeaseLost
from core.models import now, timestamp


class Leased(Protocol):
    """What every such row has; `core.models.Build` says what each means."""

    @property
    def fence(self) -> int:
        """Grows with each claim."""

    @property
    def holder(self) -> str | None:
        """Of the last claim alone."""

    @property
    def faults(self) -> int:
        """Attempts that were released after a transient fault."""

    @property
    def unreturned(self) -> int:
        """Attempts claimed and not released."""

    @property
    def requested_at(self) -> str:
        """When it was requested."""


R = TypeVar("R", bound=Leased)

OPEN_STATUSES: Final = ("queued", "running")


def new_id() -> str:
    """48 bits of time and 80 random bits, in hex: unique, sorted by age, safe in a path."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def age_s(row_id: str) -> float:
    """Seconds since such an id was made.

    Raises:
        ValueError: it is no such id.
    """
    return time.time() - int(row_id[:12], 16) / 1000


def milliseconds(seconds_from_now: float) -> int:
    """Unix time in milliseconds."""
    return time.time_ns() // 1_000_000 + int(seconds_from_now * 1000)


def ours(row: Leased) -> Condition:
    """The claim is still the one under which the row was read."""
    return equals("fence", row.fence) & equals("status", "running")


def still_open(row: Leased, statuses: Sequence[str] = OPEN_STATUSES) -> Condition:
    """It has neither ended nor been claimed since it was read."""
    return equals("fence", row.fence) & one_of("status", statuses)


class LeasedRows(Generic[R]):
    """Base of the repositories of such rows: reading, claiming, and writes of their workers."""

    def __init__(
        self,
        dynamo: Dynamo,
        table: str,
        key_name: str,
        *,
        decode: Callable[[Item], R],
        decode_all: Callable[[Iterable[Item]], list[R]],
        lease_s: float,
    ) -> None:
        """Rows of `table` by `key_name`; `decode_all` leaves out what cannot be read."""
        self._dynamo = dynamo
        self._table = table
        self._key_name = key_name
        self._what = key_name.removesuffix("_id")
        self._decode = decode
        self._decode_all = decode_all
        self._lease_s = lease_s

    async def claim(self, row_id: str, fence: int, *, lease_s: float | None = None) -> R:
        """Takes a queued row, or one whose lease has expired, under the next fence.

        Raises:
            LeaseLost: it has ended, or another worker has it.
        """
        holder = secrets.token_hex(8)
        queued = equals("status", "queued")
        expired = equals("status", "running") & below("lease_until_ms", milliseconds(0))
        return await self._update(
            row_id,
            Update(
                set={
                    "status": "running",
                    "fence": fence + 1,
                    "holder": holder,
                    "lease_until_ms": milliseconds(lease_s or self._lease_s),
                },
                set_if_missing={"started_at": timestamp(now())},
                add={"unreturned": 1},
            ),
            equals("fence", fence) & (queued | expired),
            holder,
        )

    async def release(self, row: R, error: str, *, wait_s: float, fault: bool = True) -> R:
        """Gives up the claim; the row can be claimed again after `wait_s`.

        A `fault` counts towards the attempts that it has; a worker that stops is none.

        Raises:
            LeaseLost: this worker no longer has it.
        """
        return await self._update(
            self._id_of(row),
            Update(
                set={
                    "lease_until_ms": milliseconds(wait_s),
                    "error": error,
                    "faults": row.faults + fault,
                    "unreturned": row.unreturned - 1,
                }
            ),
            ours(row),
        )

    async def _beat(self, row: R, written: dict[str, Any]) -> R:
        """Renews the lease, and writes how far the work is.

        Raises:
            LeaseLost: this worker no longer has it.
        """
        change = {"lease_until_ms": milliseconds(self._lease_s), **written}
        return await self._update(self._id_of(row), Update(set=change), ours(row))

    async def _find(self, row_id: str) -> R | None:
        """One row, read consistently; None if there is none."""
        row = await get_row(self._dynamo, self._table, self._key(row_id))
        return None if row is None else self._decode(row)

    async def _list_page(
        self, index: str, model_version: str, limit: int, position: tuple[str, str] | None
    ) -> tuple[list[R], tuple[str, str] | None]:
        """Up to `limit` rows of a model version, newest first, and the position to continue from.

        A position is the id of a row and its `requested_at`.
        """
        start: dict[str, Any] = {}
        if position:
            row_id, requested_at = position
            start["ExclusiveStartKey"] = {
                **self._key(row_id),
                **key(model_version=model_version, requested_at=requested_at),
            }
        reply = await self._dynamo.call(
            "query",
            TableName=self._table,
            IndexName=index,
            ScanIndexForward=False,
            Limit=limit,
            **start,
            **expressions(key=equals("model_version", model_version)),
        )
        last: Item | None = reply.get("LastEvaluatedKey")
        rows = self._decode_all(reply["Items"])
        if last is None:
            return rows, None
        return rows, (last[self._key_name].S or "", last["requested_at"].S or "")

    async def _list_open(self, index: str, open_values: Iterable[str]) -> list[R]:
        """Every open row, oldest first; eventually consistent. Unreadable rows are skipped."""
        rows: list[R] = []
        for value in open_values:
            async for items in paginate(
                self._dynamo.call,
                "query",
                TableName=self._table,
                IndexName=index,
                **expressions(key=equals(tables.OPEN, value)),
            ):
                rows += self._decode_all(items)
        return sorted(rows, key=lambda row: row.requested_at)

    async def _update(
        self, row_id: str, update: Update, condition: Condition, holder: str | None = None
    ) -> R:
        """Updates a row; if it already has this `holder`, an earlier try of this call succeeded.

        Raises:
            LeaseLost: the condition is not met.
        """
        try:
            reply = await self._dynamo.call(
                "update_item",
                TableName=self._table,
                Key=self._key(row_id),
                ReturnValues="ALL_NEW",
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **expressions(update=update, condition=condition),
            )
        except ConditionFailed as failed:
            there = self._decode(failed.item) if failed.item else None
            if there is not None and holder is not None and there.holder == holder:
                return there
            raise self._lost(row_id) from None
        return self._decode(reply["Attributes"])

    def _key(self, row_id: str) -> RequestItem:
        return key(**{self._key_name: row_id})

    def _id_of(self, row: R) -> str:
        row_id: str = getattr(row, self._key_name)
        return row_id

    def _lost(self, row_id: str) -> LeaseLost:
        """The error of a worker that no longer has a row."""
        return LeaseLost(f"another worker has {self._what} {row_id}, or it has ended")
