"""Deletions of users: which are pending, and which worker has each by a lease.

Mark and lease are attributes of the user's row. Each removal is a transaction that also renews the
lease, conditional on this worker's holding it: nothing is removed once the profile is gone, created
again or marked again, or once another worker has taken over.
"""

import secrets
from collections.abc import Sequence

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
from core.dynamo.pagination import paginate
from core.dynamo.rows import get_row, update_row
from core.errors import LeaseLost, TransactionFailed, Unavailable
from core.repositories import transactions
from core.repositories.build_rows import milliseconds
from core.repositories.transactions import Part, found, refused
from core.settings import Settings

_PENDING = "k9/user-deletions"
"""The partition of the idempotency table with the users whose deletion is pending. No caller's
partition has that name: theirs begin with `user/`."""
_LEGACY_PENDING = "k9/deletions"
"""The same, as written by older releases. Their workers query it, and delete without a lease: new
deletions are not listed there, and a claim moves those that are."""
REMOVALS_MAX = 9
"""Rows removed in one transaction: of any size, they and the profile stay under its 4 MB."""

_MARK = "deleting_at"
_HOLDER = "deletion_holder"
_LEASE = "deletion_lease_until_ms"


class Deletion(msgspec.Struct, frozen=True):
    """One worker's claim to remove a user."""

    user_id: str
    holder: str
    """A random id of this claim."""


def deletion_mark(marked_at: str) -> Update:
    """The update that marks a user's row for deletion."""
    return Update(set={_MARK: marked_at})


def pending_deletion(table: str, user_id: str, marked_at: str) -> Part:
    """The part of a transaction that lists a deletion in the idempotency table, for workers."""
    row = {**key(caller=_PENDING, key=user_id), "marked_at": {"S": marked_at}}
    return transactions.put(table, row)


class DeletionRepository:
    """Marks in the users table, and the list of them in the idempotency table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._users = settings.table(tables.USERS.name)
        self._pending = settings.table(tables.IDEMPOTENCY.name)
        self._lease_s = settings.building.lease_s

    async def list_marked(self) -> list[str]:
        """The users whose deletion is pending, read consistently."""
        found_ids: dict[str, None] = {}
        for partition in (_PENDING, _LEGACY_PENDING):
            async for items in paginate(
                self._dynamo.call,
                "query",
                TableName=self._pending,
                ConsistentRead=True,
                **expressions(key=equals("caller", partition)),
            ):
                found_ids |= dict.fromkeys(item["key"].S or "" for item in items)
        return list(found_ids)

    async def claim(self, user_id: str) -> Deletion | None:
        """Claims the deletion of a marked user; None where another worker has it.

        None as well for a user who is not marked, who is then taken off the list.
        """
        row = await get_row(self._dynamo, self._users, key(user_id=user_id)) or {}
        if _MARK not in row:
            await self._unlist_unmarked(user_id)
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
                pending_deletion(self._pending, user_id, row[_MARK].S or ""),
                transactions.delete(self._pending, key(caller=_LEGACY_PENDING, key=user_id)),
            )
        except TransactionFailed as failed:
            there = found(failed, 0)
            if there is None or _HOLDER not in there or there[_HOLDER].S != deletion.holder:
                return None  # another worker was first
            # The claim was made, and the reply to it lost.
        return deletion

    async def renew(self, deletion: Deletion) -> None:
        """Renews the lease.

        Raises:
            LeaseLost: another worker has the deletion, or it is done.
        """
        await self.remove(deletion, ())

    async def remove(self, deletion: Deletion, removals: Sequence[Part]) -> None:
        """Removes rows of the user, up to `REMOVALS_MAX`, and renews the lease.

        Raises:
            LeaseLost: another worker has the deletion, or it is done; nothing was removed.
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
        """Ends the lease, so that any worker may continue at once."""
        # Where the condition is not met, another worker has it already, or it is done.
        await update_row(
            self._dynamo,
            self._users,
            key(user_id=deletion.user_id),
            Update(set={_LEASE: 0}),
            equals(_HOLDER, deletion.holder),
        )

    async def finish(self, deletion: Deletion) -> None:
        """Removes the profile, and takes it off the list.

        Raises:
            LeaseLost: another worker has the deletion, or it is done; nothing was removed.
        """
        try:
            await transactions.transact(
                self._dynamo,
                transactions.delete(
                    self._users,
                    key(user_id=deletion.user_id),
                    equals(_HOLDER, deletion.holder),
                ),
                *self._unlist(deletion.user_id),
            )
        except TransactionFailed:
            raise _lost() from None

    async def _unlist_unmarked(self, user_id: str) -> None:
        unmarked = transactions.check(self._users, key(user_id=user_id), missing(_MARK))
        try:
            await transactions.transact(self._dynamo, unmarked, *self._unlist(user_id))
        except TransactionFailed:
            return  # the user was marked meanwhile

    def _unlist(self, user_id: str) -> tuple[Part, ...]:
        return tuple(
            transactions.delete(self._pending, key(caller=partition, key=user_id))
            for partition in (_PENDING, _LEGACY_PENDING)
        )


def _lost() -> LeaseLost:
    return LeaseLost("another worker has this deletion, or has finished it")
