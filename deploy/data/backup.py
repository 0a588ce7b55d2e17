"""Every table to files, byte for byte, in parallel segments."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from core import __version__
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.models import now, timestamp
from core.settings import Settings
from deploy.aws.clients import together
from deploy.data.archive import FileEntry, Manifest, SegmentFile, TableEntry, claimed, finish
from deploy.data.bulk import scan_segment

SEGMENTS: Final = 8
"""Parts of a table that are read side by side."""

ORDER: Final = (
    tables.EMBEDDINGS,
    tables.REPORTS,
    tables.USERS,
    tables.BUILDS,
    tables.MODELS,
    tables.IDEMPOTENCY,
)
"""What is pointed to comes after what points to it: on a table that is written to meanwhile, no
embedding is without its model version, and no report without its user."""

Told = Callable[[str, int], None]
"""Is told of each page: a table, and the items of it that were written since."""


async def back_up(
    dynamo: Dynamo, settings: Settings, directory: Path, told: Told = lambda _table, _items: None
) -> Manifest:
    """Writes every table of the environment to a directory that is empty or not there.

    A backup that is interrupted leaves a directory that another run begins anew.

    Raises:
        CommandError: the directory is not empty, or cannot be written.
        TableMissing: a table is not there.
        Unavailable: DynamoDB did not answer after all tries.
    """
    with claimed(directory):
        began_at = timestamp(now())
        entries = {
            table.name: await _back_up_table(dynamo, settings, directory, table, told)
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
    dynamo: Dynamo, settings: Settings, directory: Path, table: tables.Table, told: Told
) -> TableEntry:
    name = settings.table(table.name)

    async def segment(number: int) -> FileEntry | None:
        file = SegmentFile(directory / f"{table.name}.{number:03}.jsonl.gz")
        try:
            async for page in scan_segment(dynamo, name, number, SEGMENTS):
                await asyncio.to_thread(file.write, page)
                told(table.name, len(page))
            return await asyncio.to_thread(file.close)
        finally:
            file.abandon()

    made = await together(*(segment(number) for number in range(SEGMENTS)))
    files = [file for file in made if file is not None]
    return TableEntry(name, sum(file.items for file in files), files)
