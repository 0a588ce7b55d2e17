"""Reports: every write is conditional on their user, and every read checks it."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, equals, expressions, key, missing
from core.dynamo.items import Codec
from core.dynamo.pagination import paginate
from core.dynamo.rows import get_row
from core.dynamo.wire import Item
from core.errors import AlreadyExists, NotFound, Stale, TransactionFailed
from core.models import Report
from core.repositories import transactions
from core.repositories.transactions import Part, refused
from core.repositories.user_deletions import REMOVALS_MAX
from core.repositories.users import UserRepository, being_deleted
from core.settings import Settings

REPORT_CODEC = Codec(Report)


class ReportPosition(msgspec.Struct, frozen=True):
    """A position in a list of reports: the last one of a page."""

    id: str
    created_at: str


class ReportRepository:
    """The reports table.

    A write raises InFlight where the idempotency claim in `also` was lost.
    """

    def __init__(self, dynamo: Dynamo, users: UserRepository, settings: Settings) -> None:
        self._dynamo = dynamo
        self._users = users
        self._table = settings.table(tables.REPORTS.name)

    async def get_report(self, report_id: str, user_id: str) -> Report:
        """One report of this user, read consistently.

        Raises:
            NotFound: there is none, or it is someone else's.
        """
        item = await get_row(self._dynamo, self._table, key(id=report_id))
        if item is None or item["user_id"].S != user_id:
            raise unknown_report()
        return REPORT_CODEC.decode(item)

    async def create_report(self, report: Report, also: Sequence[Part] = ()) -> None:
        """Puts a new report.

        Raises:
            AlreadyExists: there is one of that id.
            BeingDeleted: its user is being deleted.
        """
        item = REPORT_CODEC.encode(report)
        await self._write(
            transactions.put(self._table, item, missing("id")), report.user_id, also, create=True
        )

    async def update_report(
        self, report: Report, expected_version: int, also: Sequence[Part] = ()
    ) -> None:
        """Puts a changed report over the version it was made from.

        Raises:
            NotFound: there is none any more, or it is someone else's.
            Stale: it has another version by now.
            BeingDeleted: its user is being deleted.
        """
        item = REPORT_CODEC.encode(report)
        condition = _owned(report.user_id) & equals("version", expected_version)
        await self._write(transactions.put(self._table, item, condition), report.user_id, also)

    async def delete_report(
        self,
        report_id: str,
        user_id: str,
        expected_version: int | None = None,
        also: Sequence[Part] = (),
    ) -> None:
        """Deletes a report of this user, of any version unless one is expected.

        Raises:
            NotFound: there is none, or it is someone else's.
            Stale: it has another version.
            BeingDeleted: its user is being deleted.
        """
        condition = _owned(user_id)
        if expected_version is not None:
            condition &= equals("version", expected_version)
        await self._write(
            transactions.delete(self._table, key(id=report_id), condition), user_id, also
        )

    async def list_reports(
        self, user_id: str, *, limit: int, position: ReportPosition | None = None
    ) -> tuple[list[Report], ReportPosition | None]:
        """Up to `limit` reports of this user, newest first, and the position to continue from.

        The partition key is the caller, never anything that came in a cursor.
        """
        start: dict[str, Any] = {}
        if position is not None:
            start["ExclusiveStartKey"] = key(
                id=position.id, created_at=position.created_at, user_id=user_id
            )
        reply = await self._dynamo.call(
            "query",
            TableName=self._table,
            IndexName=tables.USER_REPORTS_INDEX,
            ScanIndexForward=False,
            Limit=limit,
            **start,
            **expressions(key=equals("user_id", user_id)),
        )
        reports = [REPORT_CODEC.decode(item) for item in reply["Items"]]
        last: Item | None = reply.get("LastEvaluatedKey")
        if last is None:
            return reports, None
        return reports, ReportPosition(last["id"].S or "", last["created_at"].S or "")

    async def removals(self, user_id: str) -> AsyncIterator[list[Part]]:
        """The parts that delete a user's reports, in lists of one transaction each."""
        async for items in paginate(
            self._dynamo.call,
            "query",
            TableName=self._table,
            IndexName=tables.USER_REPORTS_INDEX,
            Limit=REMOVALS_MAX,
            **expressions(key=equals("user_id", user_id), projection=("id",)),
        ):
            if items:
                yield [
                    transactions.delete(
                        self._table, key(id=item["id"].S or ""), _owned(user_id) | missing("id")
                    )
                    for item in items
                ]

    async def _write(
        self, part: Part, user_id: str, also: Sequence[Part], *, create: bool = False
    ) -> None:
        try:
            allowed = self._users.allows(user_id)
            await transactions.transact(self._dynamo, part, allowed, also=also)
        except TransactionFailed as failed:
            if not refused(failed, 0):
                raise being_deleted() from None
            if create:
                raise AlreadyExists("there is a report of that id already") from None
            item = failed.items[0]
            if item is None or item["user_id"].S != user_id:
                raise unknown_report() from None
            raise Stale("the report has changed since the version that was named") from None


def unknown_report() -> NotFound:
    """The one answer for a report that does not exist and one that is someone else's."""
    return NotFound("there is no such report")


def _owned(user_id: str) -> Condition:
    return equals("user_id", user_id)
