"""Every table from a backup's files; then new epochs, and a build of each model version.

Nothing is written before every checksum held. A tag on the models table says that a restore is
under way: the same one may go on where it was interrupted, and no other may.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from core.dynamo import tables
from core.dynamo.wire import Item
from core.models import now, timestamp
from core.resources import Resources
from core.settings import Files
from deploy.aws.clients import together
from deploy.aws.tables import read_mark, remove_mark, write_mark
from deploy.data.archive import Manifest, TableEntry, read_items, read_manifest, verify
from deploy.data.backup import SEGMENTS
from deploy.data.bulk import BATCH_ROWS, delete_batch, is_empty, put_batch, scan_segment
from deploy.data.epochs import ended_build, epoch_of, next_epoch, renewed_model
from deploy.data.request_builds import Probes, Requested, rebuild
from deploy.errors import CommandError

MARK: Final = "k9:restoring"
_BATCHES_IN_FLIGHT: Final = 16
_ITEMS_A_BLOCK: Final = 500

ORDER: Final = (
    tables.IDEMPOTENCY,
    tables.USERS,
    tables.REPORTS,
    tables.EMBEDDINGS,
    tables.BUILDS,
    tables.MODELS,
)
"""Model versions come last: before they are there, nobody can search or build."""


class Told(Protocol):
    """Is told how far a restore is."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """`step` is `checking`, `emptying users`, `writing users`; `total` 0 is not known."""


class Restored(msgspec.Struct, frozen=True):
    """What a restore came to."""

    manifest: Manifest
    emptied: int
    """Items that were there before, and were removed."""
    requested: list[Requested]
    """One a model version."""


def _quiet(step: str, done: int, total: int) -> None:
    """Says nothing."""


async def restore(
    resources: Resources,
    directory: Path,
    *,
    force: bool = False,
    told: Told = _quiet,
    say: Callable[[str], None] = lambda _line: None,
) -> Restored:
    """Makes the tables of the environment what they were, and requests builds.

    Item by item they are byte for byte as in the backup, but for two kinds: a model version has a
    new epoch and no current build, and a build that was open has ended.

    Args:
        resources: Of the environment to restore into.
        directory: The backup.
        force: Replaces tables that are not empty, whole.
        told: Is told how far it is.
        say: Is given a line on what is decided.

    Raises:
        CommandError: the backup does not hold, or a table is not empty: nothing is written then.
        TableMissing: a table is not there.
        Unavailable: DynamoDB did not take all of it; the same restore again goes on.
    """
    manifest = await asyncio.to_thread(_verified, directory, resources.settings.files, told)
    run = _Run(resources, directory, manifest, told)
    full = await run.full_tables()
    await _allow(resources, manifest, full, force=force, say=say)
    floor = await run.epochs()
    await write_mark(resources.settings, tables.MODELS.name, MARK, manifest.sha256)
    emptied = 0
    for table in reversed(ORDER):
        if table.name in full:
            emptied += await run.empty(table)
    probes = await run.fill(floor)
    await remove_mark(resources.settings, tables.MODELS.name, MARK)
    requested = await rebuild(resources, run.models, probes)
    return Restored(manifest, emptied, requested)


def _verified(directory: Path, limits: Files, told: Told) -> Manifest:
    manifest = read_manifest(directory)
    missing = {table.name for table in ORDER} - manifest.tables.keys()
    if missing:
        raise CommandError(f"{directory}: has no table {', '.join(sorted(missing))}")
    done = 0
    for file in verify(directory, manifest, limits):
        done += file.bytes
        told("checking", done, manifest.bytes)
    return manifest


async def _allow(
    resources: Resources,
    manifest: Manifest,
    full: set[str],
    *,
    force: bool,
    say: Callable[[str], None],
) -> None:
    """Raises: CommandError: the tables hold something that nobody said may go."""
    if not full:
        return
    mark = await read_mark(resources.settings, tables.MODELS.name, MARK)
    if mark == manifest.sha256:
        say("going on with an interrupted restore of this backup")
        return
    if force:
        return
    names = ", ".join(sorted(map(resources.settings.table, full)))
    if mark is not None:
        raise CommandError(
            f"an interrupted restore of another backup is in {names}: "
            "finish that one, or replace it with --force"
        )
    raise CommandError(f"not empty: {names}; --force replaces all that is in them")


class _Run:
    def __init__(
        self, resources: Resources, directory: Path, manifest: Manifest, told: Told
    ) -> None:
        self._dynamo = resources.dynamo
        self._settings = resources.settings
        self._directory = directory
        self._manifest = manifest
        self._told = told
        self._moment = timestamp(now())
        self.models: list[Item] = []
        """The records of the model versions, as they are in the backup."""

    async def full_tables(self) -> set[str]:
        """The tables that have items: `users` and so on."""
        return {
            table.name
            for table in ORDER
            if not await is_empty(self._dynamo, self._settings.table(table.name))
        }

    async def epochs(self) -> dict[str, int]:
        """The epoch of each model version that is there now."""
        found: dict[str, int] = {}
        async for page in scan_segment(
            self._dynamo, self._settings.table(tables.MODELS.name), 0, 1
        ):
            found |= {item["model_version"].S or "": epoch_of(item) for item in page}
        return found

    async def empty(self, table: tables.Table) -> int:
        """Deletes all of a table; how many items."""
        name = self._settings.table(table.name)
        removed = 0

        async def segment(number: int) -> None:
            nonlocal removed
            keys = table.key.attributes
            async for page in scan_segment(self._dynamo, name, number, SEGMENTS, attributes=keys):
                for start in range(0, len(page), BATCH_ROWS):
                    batch = page[start : start + BATCH_ROWS]
                    await delete_batch(self._dynamo, name, table.key, batch)
                    removed += len(batch)
                    self._told(f"emptying {table.name}", removed, 0)

        await together(*(segment(number) for number in range(SEGMENTS)))
        return removed

    async def fill(self, floor: dict[str, int]) -> Probes:
        """Writes every table; where the rows of each model version's shards can be looked for."""
        probes = Probes()
        async for block in self._blocks(self._manifest.tables[tables.MODELS.name]):
            self.models += block

        def made(table: tables.Table, item: Item) -> Item:
            if table is tables.EMBEDDINGS:
                probes.note(item)
            if table is tables.BUILDS:
                return ended_build(item, self._moment)
            if table is tables.MODELS:
                there = floor.get(item["model_version"].S or "", 0)
                return renewed_model(item, next_epoch(epoch_of(item), there))
            return item

        for table in ORDER:
            await self._fill(table, made)
        return probes

    async def _fill(self, table: tables.Table, made: Callable[[tables.Table, Item], Item]) -> None:
        name, entry = self._settings.table(table.name), self._manifest.tables[table.name]
        gate = asyncio.Semaphore(_BATCHES_IN_FLIGHT)
        done = 0

        async def write(batch: list[Item]) -> None:
            nonlocal done
            try:
                await put_batch(self._dynamo, name, batch)
            finally:
                gate.release()
            done += len(batch)
            self._told(f"writing {table.name}", done, entry.items)

        try:
            async with asyncio.TaskGroup() as group:
                async for block in self._blocks(entry):
                    items = [made(table, item) for item in block]
                    for start in range(0, len(items), BATCH_ROWS):
                        await gate.acquire()
                        group.create_task(write(items[start : start + BATCH_ROWS]))
        except* Exception as failed:  # noqa: BLE001 - the first is raised as it is
            raise failed.exceptions[0] from None

    async def _blocks(self, entry: TableEntry) -> AsyncIterator[list[Item]]:
        blocks = read_items(self._directory, entry, _ITEMS_A_BLOCK, self._settings.files)
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            yield block
