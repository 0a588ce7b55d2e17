"""Deletions of users: which are pending, and which worker has the lease of each.

Mark and lease are in the user's row. Every removal is a transaction that renews the lease and is
conditional on it: nothing is removed once the profile is gone, created or marked again, or once
another worker has taken over.
"""

from collections.abc import Sequence

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import equals, expressions, key, missing
from core.dynamo.pagination import paginate
from core.dynamo.rows import get_row, update_row
from core.errors import LeaseLost, TransactionFailed, Unavailable
from core.repositories import transactions
from core.repositories.deletion_leases import MARK, DeletionLease
from core.repositories.transactions import Part, refused
from core.settings import Settings

_PENDING = "k9/user-deletions"
"""In the idempotency table, the partition of the users whose deletion is pending. It is no caller's
partition: theirs begin with `user/`."""
_EARLY_PENDING = "k9/deletions"
"""The same, as written by releases up to 23e14f8. Their workers query it and delete without a
lease: new entries are not written there, and a claim moves those that are."""
REMOVALS_MAX = 9
"""Rows removed in one transaction: with the profile they are below its 4 MB, however large."""


class UserDeletion(msgspec.Struct, frozen=True):
    """One worker's claim to delete a user."""

    user_id: str
    lease: DeletionLease


def pending(table: str, user_id: str, moment: str) -> Part:
    """The part of a transaction that enters a marked user in the idempotency table, for workers."""
    return transactions.put(
        table, {**key(caller=_PENDING, key=user_id), "marked_at": {"S": moment}}
    )


class UserDeletionRepository:
    """Marks and leases in the users table, and the pending ones in the idempotency table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._users = settings.table(tables.USERS.name)
        self._pending = settings.table(tables.IDEMPOTENCY.name)
        self._lease_s = settings.building.lease_s

    async def list_marked(self) -> list[str]:
        """The users whose deletion is pending, read consistently."""
        found: dict[str, None] = {}
        for partition in (_PENDING, _EARLY_PENDING):
            async for items in paginate(
                self._dynamo.call,
                "query",
                TableName=self._pending,
                ConsistentRead=True,
                **expressions(key=equals("caller", partition)),
            ):
                found |= dict.fromkeys(item["key"].S or "" for item in items)
        return list(found)

    async def claim(self, user_id: str) -> UserDeletion | None:
        """Takes the deletion of a marked user; None when another worker has it.

        None too for a user who is not marked: a pending entry that is left is removed.
        """
        row = await get_row(self._dynamo, self._users, key(user_id=user_id))
        if row is None or MARK not in row:
            await self._remove_pending(user_id)
            return None
        lease = DeletionLease(row[MARK].S or "")
        try:
            await transactions.transact(
                self._dynamo,
                transactions.update(
                    self._users, key(user_id=user_id), lease.renewed(self._lease_s), lease.available
                ),
                pending(self._pending, user_id, lease.marked_at),
                transactions.delete(self._pending, key(caller=_EARLY_PENDING, key=user_id)),
            )
        except TransactionFailed:
            return None
        return UserDeletion(user_id, lease)

    async def renew(self, deletion: UserDeletion) -> None:
        """Renews the lease.

        Raises:
            LeaseLost: this worker no longer has the deletion.
        """
        await self.remove(deletion, ())

    async def remove(self, deletion: UserDeletion, removals: Sequence[Part]) -> None:
        """Removes up to `REMOVALS_MAX` rows of the user, and renews the lease.

        Raises:
            LeaseLost: this worker no longer has the deletion; nothing was removed.
            Unavailable: a row has changed since it was found; nothing was removed.
        """
        renewed = transactions.update(
            self._users,
            key(user_id=deletion.user_id),
            deletion.lease.renewed(self._lease_s),
            deletion.lease.held,
        )
        try:
            await transactions.transact(self._dynamo, renewed, *removals)
        except TransactionFailed as failed:
            if refused(failed, 0):
                raise _lost() from None
            raise Unavailable("a row has changed since it was found; try again") from None

    async def release(self, deletion: UserDeletion) -> None:
        """Ends the lease, so that any worker may continue at once."""
        where, lease = key(user_id=deletion.user_id), deletion.lease
        await update_row(self._dynamo, self._users, where, lease.released, lease.held)

    async def finish(self, deletion: UserDeletion) -> None:
        """Removes the profile and the pending entry.

        Raises:
            LeaseLost: this worker no longer has the deletion; nothing was removed.
        """
        try:
            await transactions.transact(
                self._dynamo,
                transactions.delete(
                    self._users, key(user_id=deletion.user_id), deletion.lease.held
                ),
                *self._pending_entries(deletion.user_id),
            )
        except TransactionFailed:
            raise _lost() from None

    async def _remove_pending(self, user_id: str) -> None:
        unmarked = transactions.check(self._users, key(user_id=user_id), missing(MARK))
        try:
            await transactions.transact(self._dynamo, unmarked, *self._pending_entries(user_id))
        except TransactionFailed:
            return  # the user was marked meanwhile

    def _pending_entries(self, user_id: str) -> tuple[Part, ...]:
        return tuple(
            transactions.delete(self._pending, key(caller=partition, key=user_id))
            for partition in (_PENDING, _EARLY_PENDING)
        )


def _lost() -> LeaseLost:
    return LeaseLost("another worker has this deletion, or has finished it")
