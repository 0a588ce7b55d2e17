"""Deletions of users: which are not done yet, and the worker that has each by a lease.

Mark and lease stand in the user's row. Each removal is a transaction that also renews the lease,
and holds only while this worker has it: nothing is removed once the profile is gone, made anew or
marked anew, or once another worker has taken over.
"""

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import (
    Update,
    equals,
    exists,
    expressions,
    key,
    missing,
)
from core.dynamo.wire import Item, request_item
from core.errors import ConditionFailed, LeaseLost, TransactionFailed, Unavailable
from core.repositories import transactions
from core.repositories.build_rows import milliseconds
from core.repositories.transactions import Part, found, refused
from core.settings import Settings

_NOTES = "k9/user-deletions"
"""In the idempotency table, the partition of the users whose deletion is not done. No caller's
partition has that name: theirs begin with `user/`."""
_OLDER_NOTES = "k9/deletions"
"""The same, as written by older versions. Their workers query it, and remove without a lease: new
notes are not written there, and a claim moves the ones that are."""
REMOVALS_MAX = 9
"""Rows removed in one transaction: with the profile they are under its 4 MB, whatever they hold."""

_MARK = "deleting_at"
_HOLDER = "deletion_holder"
_LEASE = "deletion_lease_until_ms"


class Deletion(msgspec.Struct, frozen=True):
    """One worker's claim to remove a user."""

    user_id: str
    holder: str
    """Of this claim alone, which is of one mark of one profile."""


def marking(moment: str) -> Update:
    """What marks a user's row for deletion."""
    return Update(set={_MARK: moment})


def noted(table: str, user_id: str, moment: str) -> Part:
    """The part of a transaction that notes a mark in the idempotency table, for workers to find."""
    return transactions.put(table, {**key(caller=_NOTES, key=user_id), "marked_at": {"S": moment}})


class DeletionRepository:
    """Marks in the users table, and the notes of them in the idempotency table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._users = settings.table(tables.USERS.name)
        self._notes = settings.table(tables.IDEMPOTENCY.name)
        self._lease_s = settings.building.lease_s

    async def list_marked(self) -> list[str]:
        """The users whose deletion is not done, read consistently."""
        found_ids: dict[str, None] = {}
        for partition in (_NOTES, _OLDER_NOTES):
            start: dict[str, Any] = {}
            while True:
                reply = await self._dynamo.call(
                    "query",
                    TableName=self._notes,
                    ConsistentRead=True,
                    **start,
                    **expressions(key=equals("caller", partition)),
                )
                found_ids |= dict.fromkeys(item["key"].S or "" for item in reply["Items"])
                if "LastEvaluatedKey" not in reply:
                    break
                start = {"ExclusiveStartKey": request_item(reply["LastEvaluatedKey"])}
        return list(found_ids)

    async def claim(self, user_id: str) -> Deletion | None:
        """Takes the deletion of a marked user; None where another worker has it.

        None too for a user who is not marked: a note that is left of one is removed.
        """
        reply = await self._dynamo.call(
            "get_item", TableName=self._users, Key=key(user_id=user_id), ConsistentRead=True
        )
        row: Item = reply.get("Item", {})
        if _MARK not in row:
            await self._remove_notes(user_id)
            return None
        lease = row.get(_LEASE)
        if lease is not None and int(lease.N or 0) >= milliseconds(0):
            return None
        deletion = Deletion(user_id, secrets.token_hex(16))
        unchanged = exists(_MARK) & (
            equals(_HOLDER, row[_HOLDER]) if _HOLDER in row else missing(_HOLDER)
        )
        if lease is not None:
            unchanged &= equals(_LEASE, lease)
        change = Update(set={_HOLDER: deletion.holder, _LEASE: milliseconds(self._lease_s)})
        try:
            await transactions.transact(
                self._dynamo,
                transactions.update(self._users, key(user_id=user_id), change, unchanged),
                noted(self._notes, user_id, row[_MARK].S or ""),
                transactions.delete(self._notes, key(caller=_OLDER_NOTES, key=user_id)),
            )
        except TransactionFailed as failed:
            there = found(failed, 0)
            if there is None or _HOLDER not in there or there[_HOLDER].S != deletion.holder:
                return None  # another worker was first
            # The claim was made, and its answer lost on the way.
        return deletion

    async def renew(self, deletion: Deletion) -> None:
        """Renews the lease.

        Raises:
            LeaseLost: the deletion is not this worker's any more.
        """
        await self.remove(deletion, ())

    async def remove(self, deletion: Deletion, removals: Sequence[Part]) -> None:
        """Removes rows of the user, up to `REMOVALS_MAX`, and renews the lease.

        Raises:
            LeaseLost: the deletion is not this worker's any more; nothing was removed.
            Unavailable: a row has changed since it was found; nothing was removed.
        """
        renewed = transactions.update(
            self._users,
            key(user_id=deletion.user_id),
            Update(set={_LEASE: milliseconds(self._lease_s)}),
            equals(_HOLDER, deletion.holder),
        )
        try:
            await transactions.transact(self._dynamo, renewed, *removals)
        except TransactionFailed as failed:
            if refused(failed, 0):
                raise _lost() from None
            raise Unavailable("a row has changed since it was found; try again") from None

    async def release(self, deletion: Deletion) -> None:
        """Ends the lease, so that any worker may go on at once."""
        try:
            await self._dynamo.call(
                "update_item",
                TableName=self._users,
                Key=key(user_id=deletion.user_id),
                **expressions(
                    update=Update(set={_LEASE: 0}), condition=equals(_HOLDER, deletion.holder)
                ),
            )
        except ConditionFailed:
            return  # it was another worker's already, or is done

    async def finish(self, deletion: Deletion) -> None:
        """Removes the profile and the note of its mark.

        Raises:
            LeaseLost: the deletion is not this worker's any more; nothing was removed.
        """
        try:
            await transactions.transact(
                self._dynamo,
                transactions.delete(
                    self._users,
                    key(user_id=deletion.user_id),
                    equals(_HOLDER, deletion.holder),
                ),
                *self._notes_of(deletion.user_id),
            )
        except TransactionFailed:
            raise _lost() from None

    async def _remove_notes(self, user_id: str) -> None:
        unmarked = transactions.check(self._users, key(user_id=user_id), missing(_MARK))
        try:
            await transactions.transact(self._dynamo, unmarked, *self._notes_of(user_id))
        except TransactionFailed:
            return  # the user was marked meanwhile

    def _notes_of(self, user_id: str) -> tuple[Part, ...]:
        return tuple(
            transactions.delete(self._notes, key(caller=partition, key=user_id))
            for partition in (_NOTES, _OLDER_NOTES)
        )


def _lost() -> LeaseLost:
    return LeaseLost("another worker has this deletion, or has finished it")
