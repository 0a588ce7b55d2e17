"""Restores every table from a backup, and requests a build of each model version.

Nothing is written before every checksum is verified. A tag on the models table marks a restore that
has begun: the same restore may continue after an interruption, and no other may begin.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

import msgspec

from core.concurrency import for_each, gather, in_thread
from core.dynamo import tables
from core.dynamo.items import check_row
from core.dynamo.wire import Item
from core.errors import NewerFormat
from core.models import now, timestamp
from core.resources import Resources
from core.settings import Files
from deploy.aws.tables import read_tag, remove_tag, write_tag
from deploy.callbacks import MessageCallback, ProgressCallback, ignore
from deploy.data.archive import Manifest, TableEntry, check_file, read_file
from deploy.data.builds import BuildRequest, IndexProbes, request_builds
from deploy.data.bulk import BATCH_ROWS, SEGMENTS, delete_batch, is_empty, put_batch, scan_segment
from deploy.data.epochs import OPENED, ended_row, epoch_of, next_epoch, renewed_model
from deploy.data.places import BackupReader, Place, open_reader
from deploy.errors import CommandError

TAG: Final = "k9:restoring"
_BATCHES_IN_FLIGHT: Final = 16
_BLOCK_ITEMS: Final = 500

ORDER: Final = (
    tables.IDEMPOTENCY,
    tables.USERS,
    tables.REPORTS,
    tables.EMBEDDINGS,
    tables.BUILDS,
    tables.IMPORTS,
    tables.MODELS,
)
"""Model versions come last: until their records exist, nothing can search or build."""


class Restored(msgspec.Struct, frozen=True):
    """The result of a restore."""

    manifest: Manifest
    emptied: int
    """Items that existed before, and were deleted."""
    builds: list[BuildRequest]
    """One per model version."""


async def restore(
    resources: Resources,
    place: Place,
    *,
    force: bool = False,
    progress: ProgressCallback = ignore,
    message: MessageCallback = ignore,
) -> Restored:
    """Restores the tables of the environment, and requests builds.

    Every item is byte for byte as in the backup, with two exceptions: model versions have a new
    epoch and no current build, and builds that were open are cancelled.

    Args:
        resources: Of the environment to restore into.
        place: Where the backup is.
        force: Replaces tables that are not empty, with everything in them.
        progress: Called with the steps `checking`, `emptying users`, `writing users` and so on.
        message: Called with what was decided.

    Raises:
        CommandError: the backup is not valid, or a table is not empty; nothing is written then.
        TableMissing: a table does not exist.
        Unavailable: DynamoDB did not take all of it; the same restore can continue.
    """
    async with open_reader(place, resources.settings) as reader:
        manifest = await _verified(reader, place, resources.settings.files, progress)
        run = _Run(resources, reader, manifest, progress)
        await run.read_models()
        full = await run.full_tables()
        await _check_allowed(resources, manifest, full, force=force, message=message)
        epochs = await run.epochs()
        await write_tag(resources.settings, tables.MODELS, TAG, manifest.sha256)
        emptied = 0
        for table in reversed(ORDER):
            if table.name in full:
                emptied += await run.empty(table)
        probes = await run.fill(epochs)
    builds = await request_builds(resources, run.models, probes)
    await remove_tag(resources.settings, tables.MODELS, TAG)
    return Restored(manifest, emptied, builds)


async def _verified(
    reader: BackupReader, place: Place, limits: Files, progress: ProgressCallback
) -> Manifest:
    manifest = await reader.manifest()
    # Backups of releases without imports have no such table: it becomes empty.
    missing = {table.name for table in ORDER} - {tables.IMPORTS.name} - manifest.tables.keys()
    if missing:
        raise CommandError(f"{place}: has no table {', '.join(sorted(missing))}")
    done = 0
    for table in manifest.tables.values():
        for file in table.files:
            async with reader.fetched(file) as directory:
                await asyncio.to_thread(check_file, directory, file, limits)
            done += file.bytes
            progress("checking", done, manifest.bytes)
    return manifest


async def _check_allowed(
    resources: Resources,
    manifest: Manifest,
    full: set[str],
    *,
    force: bool,
    message: MessageCallback,
) -> None:
    """Raises: CommandError: the tables have items that the restore may not replace."""
    if not full:
        return
    tag = await read_tag(resources.settings, tables.MODELS, TAG)
    if tag == manifest.sha256:
        message("continuing an interrupted restore of this backup")
        return
    if force:
        return
    names = ", ".join(sorted(map(resources.settings.table, full)))
    if tag is not None:
        raise CommandError(
            f"an interrupted restore of another backup is in {names}: "
            "finish that one, or replace it with --force"
        )
    raise CommandError(f"not empty: {names}; --force replaces everything in them")


class _Run:
    def __init__(
        self,
        resources: Resources,
        reader: BackupReader,
        manifest: Manifest,
        progress: ProgressCallback,
    ) -> None:
        self._dynamo = resources.dynamo
        self._settings = resources.settings
        self._reader = reader
        self._manifest = manifest
        self._progress = progress
        self._moment = timestamp(now())
        self.models: list[Item] = []
        """The records of the model versions, as they are in the backup."""

    async def read_models(self) -> None:
        """Reads the records of the model versions.

        Raises:
            CommandError: a later release wrote one.
        """
        async for block in self._blocks(self._manifest.tables[tables.MODELS.name]):
            for item in block:
                try:
                    check_row(item, f"{item['model_version'].S!r} in the backup")
                except NewerFormat as error:
                    raise CommandError(str(error)) from None
            self.models += block

    async def full_tables(self) -> set[str]:
        """The tables that have items: `users` and so on."""
        return {
            table.name
            for table in ORDER
            if not await is_empty(self._dynamo, self._settings.table(table.name))
        }

    async def epochs(self) -> dict[str, int]:
        """The epoch of each model version that exists now."""
        found: dict[str, int] = {}
        name = self._settings.table(tables.MODELS.name)
        async for page in scan_segment(self._dynamo, name):
            found |= {item["model_version"].S or "": epoch_of(item) for item in page}
        return found

    async def empty(self, table: tables.Table) -> int:
        """Deletes all items of a table; returns how many."""
        name = self._settings.table(table.name)
        deleted = 0

        async def segment(number: int) -> None:
            nonlocal deleted
            keys = table.key.attributes
            async for page in scan_segment(self._dynamo, name, number, SEGMENTS, attributes=keys):
                for start in range(0, len(page), BATCH_ROWS):
                    batch = page[start : start + BATCH_ROWS]
                    await delete_batch(self._dynamo, name, table.key, batch)
                    deleted += len(batch)
                    self._progress(f"emptying {table.name}", deleted)

        await gather(*(segment(number) for number in range(SEGMENTS)))
        return deleted

    async def fill(self, epochs: dict[str, int]) -> IndexProbes:
        """Writes every table.

        Args:
            epochs: Of the model versions that existed before; the new ones are above them.

        Returns:
            Rows of each model version, to look for in ModelVersionIndex.
        """
        probes = IndexProbes()

        def restored(table: tables.Table, item: Item) -> Item:
            if table is tables.EMBEDDINGS:
                probes.add(item)
            if table in OPENED:
                return ended_row(item, self._moment)
            if table is tables.MODELS:
                previous = epochs.get(item["model_version"].S or "", 0)
                return renewed_model(item, next_epoch(epoch_of(item), previous))
            return item

        for table in ORDER:
            await self._fill(table, restored)
        return probes

    async def _fill(
        self, table: tables.Table, restored: Callable[[tables.Table, Item], Item]
    ) -> None:
        name, entry = self._settings.table(table.name), self._manifest.tables.get(table.name)
        if entry is None:
            return
        done = 0

        async def write(batch: list[Item]) -> None:
            nonlocal done
            await put_batch(self._dynamo, name, batch)
            done += len(batch)
            self._progress(f"writing {table.name}", done, entry.items)

        async def batches() -> AsyncGenerator[list[Item], None]:
            async with aclosing(self._blocks(entry)) as blocks:
                async for block in blocks:
                    items = [restored(table, item) for item in block]
                    for start in range(0, len(items), BATCH_ROWS):
                        yield items[start : start + BATCH_ROWS]

        await for_each(batches(), write, _BATCHES_IN_FLIGHT)

    async def _blocks(self, entry: TableEntry) -> AsyncGenerator[list[Item], None]:
        for file in entry.files:
            async with self._reader.fetched(file) as directory:
                limits = self._settings.files
                async for block in in_thread(read_file(directory, file, _BLOCK_ITEMS, limits)):
                    yield block
