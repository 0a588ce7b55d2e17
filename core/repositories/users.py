"""Users: each caller's own profile."""

from collections.abc import Sequence

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Update, equals, exists, key, missing
from core.dynamo.items import Codec
from core.dynamo.rows import get_row
from core.errors import AlreadyExists, BeingDeleted, NotFound, Stale, TransactionFailed
from core.models import User
from core.repositories import transactions
from core.repositories.deletion_leases import MARK
from core.repositories.transactions import Part
from core.repositories.user_deletions import pending
from core.settings import Settings

USER_CODEC = Codec(User)


class UserRepository:
    """The users table.

    A write raises InFlight where the idempotency claim in `also` was lost.
    """

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        self._dynamo = dynamo
        self._table = settings.table(tables.USERS.name)
        self._notes = settings.table(tables.IDEMPOTENCY.name)

    async def get_user(self, user_id: str) -> User:
        """One user, read consistently.

        Raises:
            NotFound: there is none.
        """
        item = await get_row(self._dynamo, self._table, key(user_id=user_id))
        if item is None:
            raise unknown_user()
        return USER_CODEC.decode(item)

    async def create_user(self, user: User, also: Sequence[Part] = ()) -> None:
        """Puts a new user, with whatever else belongs to the transaction.

        Raises:
            AlreadyExists: there is one of that id.
            BeingDeleted: the one of that id is being deleted.
        """
        await self._write(
            transactions.put(self._table, USER_CODEC.encode(user), missing("user_id")), also
        )

    async def update_user(
        self, user: User, expected_version: int, also: Sequence[Part] = ()
    ) -> None:
        """Puts a changed user over the version it was made from.

        Raises:
            NotFound: there is none any more.
            BeingDeleted: it is being deleted.
            Stale: it has changed since it was read.
        """
        condition = exists("user_id") & missing("deleting_at") & equals("version", expected_version)
        await self._write(
            transactions.put(self._table, USER_CODEC.encode(user), condition), also, create=False
        )

    async def mark_user(self, user_id: str, moment: str, also: Sequence[Part] = ()) -> None:
        """Marks a user for deletion, and enters it as pending for the workers.

        Raises:
            NotFound: there is none.
            BeingDeleted: it is marked already.
        """
        mark = transactions.update(
            self._table,
            key(user_id=user_id),
            Update(set={MARK: moment}),
            exists("user_id") & missing("deleting_at"),
        )
        await self._write(mark, [pending(self._notes, user_id, moment), *also], create=False)

    def allows(self, user_id: str) -> Part:
        """The part of a transaction that fails while the user is being deleted."""
        return transactions.check(self._table, key(user_id=user_id), missing("deleting_at"))

    async def _write(self, part: Part, also: Sequence[Part], *, create: bool = True) -> None:
        try:
            await transactions.transact(self._dynamo, part, also=also)
        except TransactionFailed as failed:
            item = failed.items[0]
            if item is None:
                raise unknown_user() from None
            if "deleting_at" in item:
                raise being_deleted() from None
            if create:
                raise AlreadyExists("there is a profile already; PATCH changes it") from None
            raise Stale("the profile has changed meanwhile") from None


def unknown_user() -> NotFound:
    """The one answer for a user who does not exist and one who is someone else."""
    return NotFound("there is no such user")


def being_deleted() -> BeingDeleted:
    """The error of every write of a user who is being deleted."""
    return BeingDeleted("this user is being deleted; nothing can be written until that is done")
