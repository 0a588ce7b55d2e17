"""Migrates a file of older data into one table, many rows at a time; safe to run twice."""

from collections.abc import AsyncGenerator, Callable, Iterator
from itertools import islice
from typing import Final, Literal

import msgspec

from core.concurrency import for_each, in_thread
from core.embedding_files.file_input import FileInput
from core.embedding_files.importing import WRITE_RETRY
from core.embedding_files.json_entries import entries
from core.errors import FileError, RowError, TableMissing, Unavailable
from core.models import Metric, Report, User
from core.resources import Resources
from deploy.callbacks import ignore
from deploy.data.migration.legacy_rows import BadEntry, Deletion, LegacyRow, RowParser
from deploy.data.migration.new_models import NewModels
from deploy.data.migration.store import LegacyStore

Table = Literal["users", "reports", "embeddings"]
Parsed = LegacyRow | BadEntry | Deletion

ROWS_IN_FLIGHT: Final = 32
_BLOCK_ENTRIES: Final = 100


class EntryResult(msgspec.Struct, frozen=True):
    """What became of one entry. With `--report` these fields are the lines of the file."""

    outcome: Literal["stored", "there", "bad", "deletions"]
    line: int
    entry: int
    id: str | None
    reason: str | None = None
    """Why it is bad."""
    left_out: tuple[str, ...] = ()
    """Attributes of the row that K9 does not store."""


class Migrated(msgspec.Struct, frozen=True):
    """The result of a migration, in rows."""

    stored: int
    there: int
    """Rows of which the table has the same or a newer version."""
    bad: int
    deletions: int = 0
    """Entries of deleted rows, which are left out."""

    def __str__(self) -> str:
        return f"{self.stored:,} stored, {self.there:,} already there, {self.bad:,} bad"


async def migrate_file(
    resources: Resources,
    file: FileInput,
    table: Table,
    *,
    metric: Metric | None = None,
    on_entry: Callable[[EntryResult], None] = ignore,
    on_position: Callable[[int], None] = ignore,
) -> Migrated:
    """Stores every valid row, unless the table has the same or a newer version of it.

    Args:
        resources: With the tables to write to.
        file: The opened file.
        table: The table whose rows the file has.
        metric: Of new model versions; cosine if None.
        on_entry: Called with the result of each entry, in any order.
        on_position: Called with how many bytes of the file have been read.

    Raises:
        FileError: the file cannot be read from some point on; the rows before it are stored.
        Unavailable: DynamoDB did not take a row after all attempts.
    """
    run = _Run(resources, table, metric, on_entry)
    damage: FileError | None = None

    async def rows() -> AsyncGenerator[LegacyRow, None]:
        nonlocal damage
        try:
            async for block in in_thread(run.blocks(file)):
                for entry in block:
                    for row in await run.accept(entry):
                        yield row
                on_position(block[-1].entry.end)
        except FileError as error:
            damage = error  # raised once the rows before it are stored
        for row in run.new_models.rest():
            yield row

    await for_each(rows(), run.store, ROWS_IN_FLIGHT)
    if damage is not None:
        raise FileError(f"{damage} (before that: {run.result()})") from damage
    return run.result()


class _Run:
    def __init__(
        self,
        resources: Resources,
        table: Table,
        metric: Metric | None,
        on_entry: Callable[[EntryResult], None],
    ) -> None:
        self._rows = LegacyStore(
            resources.dynamo,
            resources.settings,
            resources.user_deletions,
            resources.embedding_service,
        )
        self._parser = RowParser(table, resources.settings, resources.report_service)
        self.new_models = NewModels(resources.embedding_service, metric)
        self._table = table
        self._metric = metric
        self._on_entry = on_entry
        self._counts = {"stored": 0, "there": 0, "bad": 0, "deletions": 0}

    def result(self) -> Migrated:
        """The counts so far."""
        return Migrated(**self._counts)

    def blocks(self, file: FileInput) -> Iterator[list[Parsed]]:
        """The file's entries in blocks. What was read before an error comes before the error."""
        parsed = map(self._parser.parse, entries(file))
        first = True
        while True:
            block: list[Parsed] = []
            damage: FileError | None = None
            try:
                block.extend(islice(parsed, _BLOCK_ENTRIES))
            except FileError as error:
                damage = error
            if block and first:
                self._check_table(block, file.name)
                first = False
            if block:
                yield block
            if damage is not None:
                raise damage
            if not block:
                return

    def _check_table(self, block: list[Parsed], name: str) -> None:
        """Raises: FileError: none of the first rows is one of the table."""
        foreign = [entry for entry in block if isinstance(entry, BadEntry) and entry.foreign]
        if len(foreign) == len(block):
            first = f"line {foreign[0].entry.line}: {foreign[0].reason}"
            raise FileError(f"{name}: has no rows of the {self._table} table ({first})")

    async def accept(self, entry: Parsed) -> list[LegacyRow]:
        """The rows to store next; an entry that is no row is reported."""
        if isinstance(entry, BadEntry):
            self._report_bad(entry)
            return []
        if isinstance(entry, Deletion):
            self._report(EntryResult("deletions", entry.entry.line, entry.entry.number, entry.id))
            return []
        return await self.new_models.add(entry)

    async def store(self, row: LegacyRow) -> None:
        """Stores a row, and reports the result."""
        try:
            stored = await WRITE_RETRY.call(
                lambda: self._put(row), on=Unavailable, never=TableMissing
            )
        except RowError as error:
            self._report_bad(BadEntry(row.entry, row.id, str(error)))
            return
        outcome: Literal["stored", "there"] = "stored" if stored else "there"
        line, number = row.entry.line, row.entry.number
        self._report(EntryResult(outcome, line, number, row.id, left_out=row.left_out))

    async def _put(self, row: LegacyRow) -> bool:
        if isinstance(row.record, User):
            return await self._rows.store_user(row.record, row.changed_at)
        if isinstance(row.record, Report):
            return await self._rows.store_report(row.record, row.changed_at)
        name = row.record.model_version
        if name in self.new_models.rejected:
            raise RowError(self.new_models.rejected[name])
        dimension = self.new_models.dimensions.get(name)
        return await self._rows.store_embedding(row.record, row.changed_at, self._metric, dimension)

    def _report_bad(self, bad: BadEntry) -> None:
        self._report(EntryResult("bad", bad.entry.line, bad.entry.number, bad.id, bad.reason))

    def _report(self, result: EntryResult) -> None:
        self._counts[result.outcome] += 1
        self._on_entry(result)
