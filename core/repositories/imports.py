"""Imports: which are open, which worker has claimed each, how far it is, and how it ended.

Beside the rows of imports the table has two kinds of items, whose keys no import can have: the bad
rows of an import, and of each model version which of its imports are open.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from core import telemetry
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import Condition, Update, equals, key, missing
from core.dynamo.items import Codec
from core.dynamo.rows import delete_row, get_row
from core.dynamo.wire import AttributeValue, Item, RequestItem
from core.errors import (
    Corrupt,
    ImportEnded,
    LeaseLost,
    ModelBeingDeleted,
    NewerFormat,
    NotFound,
    TooManyImports,
    TransactionFailed,
    Unavailable,
)
from core.models import BadRow, Import, ImportProgress, Model, now, timestamp
from core.repositories import transactions
from core.repositories.idempotency import Claim, completion
from core.repositories.leased_rows import LeasedRows, ours, still_open
from core.repositories.models import same_model
from core.repositories.transactions import CONFLICTS, Part, refused
from core.settings import Settings

IMPORT_CODEC = Codec(Import)

_OPEN_STATUSES: Final = ("waiting", "queued", "running")
_PROGRESS: Final = "progress"
_OPEN_IDS: Final = "#open"
_BAD_ROWS: Final = "#bad-rows"

_log = telemetry.logger(__name__)


class ImportPosition(msgspec.Struct, frozen=True):
    """A position in a list of imports: the last one of a page."""

    import_id: str
    requested_at: str


class ImportState(msgspec.Struct, frozen=True):
    """How far an attempt at an import is."""

    progress: ImportProgress
    position: int = 0
    rows_stored: int = 0
    rows_bad: int = 0
    generation: int = 0

    def written(self) -> dict[str, Any]:
        """The attributes of the row."""
        plain = msgspec.structs.asdict(self)
        return {**plain, _PROGRESS: msgspec.json.encode(self.progress).decode()}


class OpenImports(msgspec.Struct, frozen=True):
    """Which imports of one model version are open; some may have ended since."""

    import_id: str
    import_ids: list[str] = []
    version: int = 0


class BadRows(msgspec.Struct, frozen=True):
    """The first bad rows of an import, under a key of their own."""

    import_id: str
    rows: tuple[BadRow, ...] = ()


OPEN_CODEC = Codec(OpenImports)
BAD_ROWS_CODEC = Codec(BadRows)


def open_row(row: Import) -> RequestItem:
    """The item of an open import."""
    return {**IMPORT_CODEC.encode(row), tables.OPEN: {"S": tables.OPEN_VALUE}}


def decode(item: Mapping[str, AttributeValue]) -> Import:
    """The inverse of `open_row`, for ended imports too.

    Progress in a stage that only a later release has is left out.

    Raises:
        Corrupt: it cannot be read.
        NewerFormat: a later release wrote it.
    """
    try:
        return IMPORT_CODEC.decode(item)
    except Corrupt:
        return IMPORT_CODEC.decode({k: v for k, v in item.items() if k != _PROGRESS})


def decode_all(items: Iterable[Item]) -> list[Import]:
    """The imports of the rows that can be read: a corrupt one must not hide the others."""
    imports = []
    for item in items:
        try:
            imports.append(decode(item))
        except (Corrupt, NewerFormat) as error:
            _log.error("import row not readable", import_id=item["import_id"].S, reason=str(error))
    return imports


class ImportRepository(LeasedRows[Import]):
    """The imports table."""

    def __init__(self, dynamo: Dynamo, settings: Settings) -> None:
        super().__init__(
            dynamo,
            settings.table(tables.IMPORTS.name),
            "import_id",
            decode=decode,
            decode_all=decode_all,
            lease_s=settings.building.lease_s,
        )
        self._models = settings.table(tables.MODELS.name)
        self._open_max = settings.imports.imports_open_max

    async def get_import(self, import_id: str) -> Import:
        """One import, read consistently.

        Raises:
            NotFound: there is none.
        """
        found = None if "#" in import_id else await self._find(import_id)
        if found is None:
            raise NotFound(f"there is no import {import_id!r}")
        return found

    async def get_bad_rows(self, import_id: str) -> tuple[BadRow, ...]:
        """The first bad rows of an import, read consistently."""
        item = await get_row(self._dynamo, self._table, key(import_id=import_id + _BAD_ROWS))
        return () if item is None else BAD_ROWS_CODEC.decode(item).rows

    async def list_imports(
        self, model_version: str, *, limit: int, position: ImportPosition | None = None
    ) -> tuple[list[Import], ImportPosition | None]:
        """Up to `limit` imports of a model version, newest first, and where to continue from."""
        at = None if position is None else (position.import_id, position.requested_at)
        found, further = await self._list_page(tables.MODEL_IMPORTS_INDEX, model_version, limit, at)
        return found, None if further is None else ImportPosition(*further)

    async def list_open(self) -> list[Import]:
        """Every open import, oldest first; eventually consistent."""
        return await self._list_open(tables.OPEN_IMPORTS_INDEX, (tables.OPEN_VALUE,))

    async def open_import(
        self, opened: Import, model: Model | None, claim: Claim | None = None
    ) -> None:
        """Writes a new import, and completes the claim, in one transaction.

        Args:
            opened: The import.
            model: Its model version as it was read; None: there is none yet.
            claim: On an idempotency key.

        Raises:
            TooManyImports: as many of the model version are open as may be.
            NotFound: the model version was deleted since it was read.
            ModelBeingDeleted: it is marked for deletion.
            InFlight: the claim was lost.
            Unavailable: concurrent requests kept interfering.
        """
        name = opened.model_version
        async for _ in CONFLICTS.attempts():
            ids, entered = await self._enter(opened)
            parts = [transactions.put(self._table, open_row(opened), missing("import_id"))]
            if model is not None:
                there = key(model_version=name)
                parts.append(transactions.check(self._models, there, same_model(model)))
            try:
                await transactions.transact(
                    self._dynamo, entered, *parts, also=completion(claim, opened)
                )
            except TransactionFailed as failed:
                if refused(failed, 1):
                    return  # written by this call, whose first answer was lost
                if refused(failed, 2):
                    raise ModelBeingDeleted(name) from None
                _log.info("open imports have changed", model_version=name, open=len(ids))
            else:
                return
        raise Unavailable(f"the import into {name} could not be opened; try again")

    async def found(self, waiting: Import, etag: str, size_bytes: int) -> Import:
        """Queues an import whose object has been uploaded.

        Raises:
            LeaseLost: it does not wait any more.
        """
        progress = msgspec.json.encode(ImportProgress()).decode()
        change = Update(
            set={"status": "queued", "etag": etag, "size_bytes": size_bytes, _PROGRESS: progress}
        )
        condition = equals("status", "waiting") & equals("fence", waiting.fence)
        return await self._update(waiting.import_id, change, condition)

    async def beat(self, row: Import, state: ImportState) -> Import:
        """Renews the lease, and writes how far the attempt is.

        Raises:
            LeaseLost: this worker no longer has the import.
        """
        return await self._beat(row, state.written())

    async def write_bad_rows(self, row: Import, rows: Sequence[BadRow]) -> None:
        """Replaces the first bad rows of an import, while this worker has it.

        Raises:
            LeaseLost: this worker no longer has the import.
        """
        item = BAD_ROWS_CODEC.encode(BadRows(row.import_id + _BAD_ROWS, tuple(rows)))
        held = transactions.check(self._table, key(import_id=row.import_id), ours(row))
        try:
            await transactions.transact(self._dynamo, held, transactions.put(self._table, item))
        except TransactionFailed:
            raise self._lost(row.import_id) from None

    async def end(
        self,
        row: Import,
        status: str,
        error: str = "",
        *,
        state: ImportState | None = None,
        bad_rows_key: str | None = None,
    ) -> None:
        """Ends an import that this worker has, or that waited for its upload in vain.

        Raises:
            LeaseLost: it is not this worker's, or does not wait any more.
        """
        held = ours(row) if row.status == "running" else still_open(row, ("waiting",))
        change = Update(
            set={
                "status": status,
                "ended_at": timestamp(now()),
                "error": error or None,
                "bad_rows_key": bad_rows_key,
                **({} if state is None else state.written()),
            },
            remove=(tables.OPEN,),
        )
        try:
            await self._update(row.import_id, change, held)
        except LeaseLost:
            there = await self.get_import(row.import_id)
            if (there.status, there.fence, there.error or "") != (status, row.fence, error):
                raise

    async def cancel(self, import_id: str, claim: Claim | None = None) -> Import:
        """Ends an open import. Its worker notices at its next heartbeat.

        Raises:
            NotFound: there is no such import.
            ImportEnded: it has ended.
            InFlight: the claim was lost.
            Unavailable: it kept changing.
        """
        cancelled: Import | None = None
        async for _ in CONFLICTS.attempts():
            row = await self.get_import(import_id)
            if cancelled and (row.fence, row.ended_at) == (cancelled.fence, cancelled.ended_at):
                return cancelled  # the response to the last try was lost
            if not row.open:
                raise ImportEnded(f"import {import_id} has ended: it is {row.status}")
            cancelled = msgspec.structs.replace(
                row, status="cancelled", fence=row.fence + 1, ended_at=timestamp(now()), error=None
            )
            change = Update(
                set={
                    "status": cancelled.status,
                    "fence": cancelled.fence,
                    "ended_at": cancelled.ended_at,
                },
                remove=(tables.OPEN, "error"),
            )
            part = transactions.update(
                self._table, key(import_id=import_id), change, still_open(row, _OPEN_STATUSES)
            )
            try:
                await transactions.transact(self._dynamo, part, also=completion(claim, cancelled))
            except TransactionFailed:
                continue  # it was claimed, or ended, since it was read
            return cancelled
        raise Unavailable(f"import {import_id} kept changing; try again")

    async def remove(self, row: Import) -> None:
        """Removes the rows of an import, if it has ended."""
        await self._delete(row.import_id + _BAD_ROWS)
        ended = missing(tables.OPEN) & equals("fence", row.fence)
        await self._delete(row.import_id, ended)

    async def forget_model(self, model_version: str) -> None:
        """Removes what is noted of a model version that has no imports any more."""
        await self._delete(model_version + _OPEN_IDS)

    async def _delete(self, row_id: str, condition: Condition | None = None) -> None:
        where = key(import_id=row_id)
        always = missing("import_id") | equals("import_id", row_id)
        await delete_row(self._dynamo, self._table, where, condition or always)

    async def _enter(self, opened: Import) -> tuple[list[str], Part]:
        """The ids of the open imports, and the part of a transaction that adds this one.

        Raises:
            TooManyImports: there are as many as may be.
        """
        where = key(import_id=opened.model_version + _OPEN_IDS)
        item = await get_row(self._dynamo, self._table, where)
        if item is None:
            row, free = OpenImports(opened.model_version + _OPEN_IDS), missing("import_id")
        else:
            row = OPEN_CODEC.decode(item)
            free = equals("version", row.version)
        ids = list(row.import_ids)
        if len(ids) >= self._open_max:
            ids = [each for each in ids if await self._is_open(each)]
        if len(ids) >= self._open_max:
            raise TooManyImports(
                f"{len(ids)} imports into {opened.model_version} are open; wait until one ends, "
                "or cancel one"
            )
        entered = OpenImports(row.import_id, [*ids, opened.import_id], row.version + 1)
        return ids, transactions.put(self._table, OPEN_CODEC.encode(entered), free)

    async def _is_open(self, import_id: str) -> bool:
        found = await self._find(import_id)
        return found is not None and found.open
