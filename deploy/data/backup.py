"""Writes every table to files, byte for byte, in parallel segments."""

import asyncio
from itertools import count
from typing import Final

import msgspec

from core import __version__
from core.concurrency import gather
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.models import now, timestamp
from core.settings import Settings
from deploy.callbacks import ProgressCallback, ignore
from deploy.data.archive import FileEntry, Manifest, SegmentFile, TableEntry
from deploy.data.bulk import SEGMENTS, scan_segment
from deploy.data.places import BackupWriter, Place, open_writer

ORDER: Final = (
    tables.EMBEDDINGS,
    tables.REPORTS,
    tables.USERS,
    tables.BUILDS,
    tables.IMPORTS,
    tables.MODELS,
    tables.IDEMPOTENCY,
)
"""Rows are read before the rows that they refer to. So in a backup of tables that are written to
meanwhile, no embedding is without its model version, and no report without its user."""


_FILE_BYTES_MAX: Final = 256 * 1024 * 1024
"""A longer file is continued in another one: a bucket takes one whole file after another, so that
a backup into it needs no more disk than this per segment."""


class Backup(msgspec.Struct, frozen=True):
    """A complete backup."""

    place: Place
    """A directory as it was named; in a bucket the new backup's own location."""
    manifest: Manifest


async def back_up(
    dynamo: Dynamo, settings: Settings, place: Place, progress: ProgressCallback = ignore
) -> Backup:
    """Writes every table of the environment to a directory, or below a prefix of a bucket.

    A directory must be empty or not exist; one with an interrupted backup is started over. In a
    bucket each backup has a new name, and an interrupted one stays without a manifest.

    Raises:
        CommandError: the directory is not empty, or cannot be written.
        TableMissing: a table does not exist.
        Unavailable: DynamoDB or S3 did not answer after all attempts.
    """
    began = now()
    async with open_writer(place, settings, began) as writer:
        entries = {
            table.name: await _back_up_table(dynamo, settings, writer, table, progress)
            for table in ORDER
        }
        manifest = Manifest(
            k9_version=__version__,
            environment=settings.environment,
            began_at=timestamp(began),
            ended_at=timestamp(now()),
            tables=entries,
        )
        return Backup(writer.place, await writer.finish(manifest))


async def _back_up_table(
    dynamo: Dynamo,
    settings: Settings,
    writer: BackupWriter,
    table: tables.Table,
    progress: ProgressCallback,
) -> TableEntry:
    name = settings.table(table.name)
    written = 0
    numbers = count(SEGMENTS)
    """Of the files that continue others."""

    def new_file(number: int) -> SegmentFile:
        return SegmentFile(writer.directory / f"{table.name}.{number:03}.jsonl.gz")

    async def close(file: SegmentFile) -> list[FileEntry]:
        entry = await asyncio.to_thread(file.close)
        if entry is None:
            return []
        await writer.add(entry)
        return [entry]

    async def segment(number: int) -> list[FileEntry]:
        nonlocal written
        file, entries = new_file(number), []
        try:
            async for page in scan_segment(dynamo, name, number, SEGMENTS):
                await asyncio.to_thread(file.write, page)
                written += len(page)
                progress(table.name, written)
                if file.bytes > _FILE_BYTES_MAX:
                    entries += await close(file)
                    file = new_file(next(numbers))
            return entries + await close(file)
        finally:
            file.abandon()

    lists = await gather(*(segment(number) for number in range(SEGMENTS)))
    files = sorted((file for files in lists for file in files), key=lambda file: file.name)
    return TableEntry(name, sum(file.items for file in files), files)
