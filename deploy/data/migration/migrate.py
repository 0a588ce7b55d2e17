"""Older data into the tables: many rows in flight, nothing lost in silence, safe to run twice."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Literal

import msgspec

from core.errors import RowError, TableMissing, Unavailable
from core.models import Metric, Report, User
from core.resources import Resources
from deploy.data.formats.file_input import FileInput
from deploy.data.formats.json_entries import entries
from deploy.data.importing import pauses
from deploy.data.migration.legacy_rows import BadEntry, Deletion, OldRow, RowReader
from deploy.data.migration.new_models import FirstRows
from deploy.data.migration.store import Migration
from deploy.errors import CommandError

Table = Literal["users", "reports", "embeddings"]

ROWS_IN_FLIGHT: Final = 32
_ENTRIES_A_STEP: Final = 100


class Told(msgspec.Struct, frozen=True):
    """What became of one entry."""

    outcome: Literal["stored", "there", "bad", "deletions"]
    line: int
    entry: int
    id: str | None
    reason: str | None = None
    """Why it is bad."""
    left_out: tuple[str, ...] = ()
    """Attributes of a row that were not taken over, since K9 has no place for them."""


class Migrated(msgspec.Struct, frozen=True):
    """What a migration came to, in rows."""

    stored: int
    there: int
    bad: int
    deletions: int = 0
    """Entries which say that a row was deleted. They are left out."""


async def migrate_file(
    resources: Resources,
    file: FileInput,
    table: Table,
    *,
    metric: Metric | None = None,
    told: Callable[[Told], None] = lambda _told: None,
    read: Callable[[int], None] = lambda _bytes: None,
) -> Migrated:
    """Stores every row that holds, unless the table has it already, as new or newer.

    Args:
        resources: With the tables to write to.
        file: The opened file.
        table: Which table's rows it has.
        metric: Of model versions that are made by this; cosine where it is None.
        told: Is given each entry's outcome, in no order.
        read: Is given how many bytes of the file are read.

    Raises:
        CommandError: the file stops to read at some point; what came before it is stored.
        Unavailable: DynamoDB still did not take a row after all tries.
    """
    return await _Run(resources, table, metric, told).run(file, read)


class _Run:
    def __init__(
        self,
        resources: Resources,
        table: Table,
        metric: Metric | None,
        told: Callable[[Told], None],
    ) -> None:
        self._migration = Migration(
            resources.dynamo,
            resources.settings,
            resources.models,
            resources.user_deletions,
            resources.embedding_service,
        )
        self._reader = RowReader(table, resources.settings, resources.report_service)
        self._first = FirstRows(resources.embedding_service, resources.settings, metric)
        self._table = table
        self._metric = metric
        self._told = told
        self._counts = {"stored": 0, "there": 0, "bad": 0, "deletions": 0}
        self._gate = asyncio.Semaphore(ROWS_IN_FLIGHT)

    async def run(self, file: FileInput, read: Callable[[int], None]) -> Migrated:
        stopped: CommandError | None = None
        steps = self._steps(file)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    try:
                        step = await asyncio.to_thread(next, steps, None)
                    except CommandError as error:
                        stopped = error  # the rows before it are still on their way
                        break
                    if step is None:
                        break
                    for row in step:
                        if isinstance(row, BadEntry):
                            self._bad(row)
                            continue
                        if isinstance(row, Deletion):
                            self._tell(Told("deletions", row.entry.line, row.entry.number, row.id))
                            continue
                        await self._begin(await self._first.take(row), group)
                    read(step[-1].entry.end)
                await self._begin(self._first.rest(), group)
        except* Exception as failed:  # noqa: BLE001 - the first is raised as it is
            raise failed.exceptions[0] from None
        if stopped is not None:
            raise CommandError(f"{stopped} (before that: {self._so_far()})") from stopped
        return Migrated(**self._counts)

    async def _begin(self, rows: list[OldRow], group: asyncio.TaskGroup) -> None:
        for row in rows:
            await self._gate.acquire()
            group.create_task(self._store(row))

    def _steps(self, file: FileInput) -> Iterator[list[OldRow | BadEntry | Deletion]]:
        """The file's rows, some at a time; what stops the file comes after what was before it."""
        rows = map(self._reader.read, entries(file))
        begun = False
        while True:
            step: list[OldRow | BadEntry | Deletion] = []
            try:
                step.extend(islice(rows, _ENTRIES_A_STEP))
            except CommandError:
                if step and not begun:
                    self._check_table(step, file.name)
                if step:
                    yield step
                raise
            if not step:
                return
            if not begun:
                self._check_table(step, file.name)
                begun = True
            yield step

    def _check_table(self, step: list[OldRow | BadEntry | Deletion], name: str) -> None:
        """Raises: CommandError: none of the first rows is one of the table."""
        foreign = [row for row in step if isinstance(row, BadEntry) and row.foreign]
        if len(foreign) == len(step):
            first = f"line {foreign[0].entry.line}: {foreign[0].reason}"
            raise CommandError(f"{name}: has no rows of the {self._table} table ({first})")

    async def _store(self, row: OldRow) -> None:
        try:
            stored = await self._patiently(row)
        except RowError as error:
            self._bad(BadEntry(row.entry, row.id, str(error)))
        else:
            self._tell(
                Told(
                    "stored" if stored else "there",
                    row.entry.line,
                    row.entry.number,
                    row.id,
                    left_out=row.left_out,
                )
            )
        finally:
            self._gate.release()

    async def _patiently(self, row: OldRow) -> bool:
        for pause_s in pauses():
            try:
                return await self._put(row)
            except TableMissing:
                raise
            except Unavailable:
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    async def _put(self, row: OldRow) -> bool:
        if isinstance(row.record, User):
            return await self._migration.store_user(row.record, row.changed_at)
        if isinstance(row.record, Report):
            return await self._migration.store_report(row.record, row.changed_at)
        name = row.record.model_version
        if name in self._first.refused:
            raise RowError(self._first.refused[name])
        dimension = self._first.dimensions.get(name)
        return await self._migration.store_embedding(
            row.record, row.changed_at, self._metric, dimension
        )

    def _bad(self, bad: BadEntry) -> None:
        self._tell(Told("bad", bad.entry.line, bad.entry.number, bad.id, bad.reason))

    def _tell(self, told: Told) -> None:
        self._counts[told.outcome] += 1
        self._told(told)

    def _so_far(self) -> str:
        return words(Migrated(**self._counts))


def words(migrated: Migrated) -> str:
    """`3 stored, 2 already there, 1 bad`."""
    return f"{migrated.stored:,} stored, {migrated.there:,} already there, {migrated.bad:,} bad"
