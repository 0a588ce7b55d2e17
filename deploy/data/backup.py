"""Writes every table to files, byte for byte, in parallel segments."""

import asyncio
from pathlib import Path
from typing import Final

from core import __version__
from core.concurrency import gather
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.models import now, timestamp
from core.settings import Settings
from deploy.callbacks import ProgressCallback, ignore
from deploy.data.archive import FileEntry, Manifest, SegmentFile, TableEntry, finish, open_backup
from deploy.data.bulk import SEGMENTS, scan_segment

ORDER: Final = (
    tables.EMBEDDINGS,
    tables.REPORTS,
    tables.USERS,
    tables.BUILDS,
    tables.MODELS,
    tables.IDEMPOTENCY,
)
"""Rows are read before the rows that they refer to. So in a backup of tables that are written to
meanwhile, no embedding is without its model version, and no report without its user."""


async def back_up(
    dynamo: Dynamo, settings: Settings, directory: Path, progress: ProgressCallback = ignore
) -> Manifest:
    """Writes every table of the environment to a directory that is empty or does not exist.

    An interrupted backup leaves a directory which the next one starts over.

    Raises:
        CommandError: the directory is not empty, or cannot be written.
        TableMissing: a table does not exist.
        Unavailable: DynamoDB did not answer after all attempts.
    """
    with open_backup(directory):
        began_at = timestamp(now())
        entries = {
            table.name: await _back_up_table(dynamo, settings, directory, table, progress)
            for table in ORDER
        }
        manifest = Manifest(
            k9_version=__version__,
            environment=settings.environment,
            began_at=began_at,
            ended_at=timestamp(now()),
            tables=entries,
        )
        return await asyncio.to_thread(finish, directory, manifest)


async def _back_up_table(
    dynamo: Dynamo,
    settings: Settings,
    directory: Path,
    table: tables.Table,
    progress: ProgressCallback,
) -> TableEntry:
    name = settings.table(table.name)
    written = 0

    async def segment(number: int) -> FileEntry | None:
        nonlocal written
        file = SegmentFile(directory / f"{table.name}.{number:03}.jsonl.gz")
        try:
            async for page in scan_segment(dynamo, name, number, SEGMENTS):
                await asyncio.to_thread(file.write, page)
                written += len(page)
                progress(table.name, written)
            return await asyncio.to_thread(file.close)
        finally:
            file.abandon()

    made = await gather(*(segment(number) for number in range(SEGMENTS)))
    files = [file for file in made if file is not None]
    return TableEntry(name, sum(file.items for file in files), files)
