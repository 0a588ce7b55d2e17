"""Makes the tables of an environment equal to those of another, by writing only what differs.

After point-in-time recovery this is how the recovered rows get back under the names that API and
worker use. Nothing may write to the tables meanwhile; that nothing did is verified at the end.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Final

import msgspec

from core.concurrency import for_each
from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.wire import AttributeValue, Item
from core.models import now, timestamp
from core.resources import Resources
from core.settings import Settings
from deploy.aws.tables import read_tag, remove_tag, write_tag
from deploy.callbacks import MessageCallback, ProgressCallback, ignore
from deploy.data.builds import IndexProbes
from deploy.data.bulk import BATCH_ROWS, SEGMENTS, delete_batch, get_batch, put_batch, scan_segment
from deploy.data.epochs import OPENED, ended_row, epoch_of, next_epoch, renewed_model
from deploy.data.restore import ORDER, TAG
from deploy.errors import CommandError

_BATCHES_IN_FLIGHT: Final = 8
_ROUNDS_MAX: Final = 3
"""Of copying and verifying: rows that were under way when writes were stopped need a second one."""
_KEPT: Final = " for good"
"""Follows the source in the tag once writes may be allowed."""

Key = tuple[str, ...]


class Copied(msgspec.Struct):
    """What was done to one table, or to all of them."""

    put: int = 0
    deleted: int = 0
    equal: int = 0
    """Rows that were the same in both."""

    @property
    def changed(self) -> int:
        """Rows that differed."""
        return self.put + self.deleted


class CopiedBack(msgspec.Struct, frozen=True):
    """The result of `copy_back`."""

    tables: dict[str, Copied]
    """By short name."""
    models: list[Item]
    """The records of the model versions as the source has them."""
    probes: IndexProbes
    """Rows to look for in ModelVersionIndex."""


async def copy_back(
    resources: Resources,
    source: Settings,
    *,
    progress: ProgressCallback = ignore,
    message: MessageCallback = ignore,
) -> CopiedBack:
    """Makes the environment's tables equal to the source's, row by row.

    Until `end_copy` no other restore may begin, and the same call copies again.

    Rows are byte for byte those of the source, with two exceptions, as after any restore: model
    versions have a new epoch and no current build, and builds that were open are cancelled.

    Args:
        resources: Of the environment that is written.
        source: Of the environment that is read; its tables are not changed.
        progress: Called with the steps `comparing users` and so on.
        message: Called with what was decided.

    Raises:
        CommandError: another restore is unfinished, or something else kept writing.
        TableMissing: a table does not exist.
        Unavailable: DynamoDB did not take all of it; the same call can continue.
    """
    settings = resources.settings
    mark = _mark(source)
    tag = await read_tag(settings, tables.MODELS, TAG)
    if tag not in {None, mark}:
        raise CommandError(
            f"an interrupted restore of something else is in {settings.environment}: "
            "finish that one first"
        )
    if tag is not None:
        message("continuing an interrupted restore")
    await write_tag(settings, tables.MODELS, TAG, mark)
    run = _Run(resources.dynamo, settings, source, progress)
    done = {table.name: Copied() for table in ORDER}
    for round_number in range(_ROUNDS_MAX):
        changed = 0
        for table in ORDER:
            copied = await run.copy(table)
            changed += copied.changed
            total = done[table.name]
            total.put += copied.put
            total.deleted += copied.deleted
            total.equal = copied.equal
        if round_number and not changed:
            return CopiedBack(done, run.models, run.probes)
    raise CommandError(
        f"something else still writes to the tables of {settings.environment}: stop the API and "
        "the workers, then run the same command again"
    )


async def keep_copy(settings: Settings, source: Settings) -> None:
    """Notes that all is done but to allow writes: a copy from now on would undo the new ones."""
    await write_tag(settings, tables.MODELS, TAG, _mark(source) + _KEPT)


async def is_kept(settings: Settings, source: Settings) -> bool:
    """Whether an interrupted restore got as far as `keep_copy`."""
    return await read_tag(settings, tables.MODELS, TAG) == _mark(source) + _KEPT


async def end_copy(settings: Settings) -> None:
    """Notes that the restore has ended, writes included."""
    await remove_tag(settings, tables.MODELS, TAG)


def _mark(source: Settings) -> str:
    return f"copied from {source.environment}"


class _Run:
    def __init__(
        self, dynamo: Dynamo, target: Settings, source: Settings, progress: ProgressCallback
    ) -> None:
        self._dynamo = dynamo
        self._target = target
        self._source = source
        self._progress = progress
        self._moment = timestamp(now())
        self._epochs: dict[str, int] = {}
        """The new epoch of each model version, the same in every round."""
        self._models: dict[str, Item] = {}
        self.probes = IndexProbes()

    @property
    def models(self) -> list[Item]:
        """The records of the model versions as the source has them."""
        return list(self._models.values())

    async def copy(self, table: tables.Table) -> Copied:
        """Puts every row that is missing or differs, and deletes every row that is too many."""
        source, target = self._source.table(table.name), self._target.table(table.name)
        copied = Copied()
        compared = 0

        async def put(batch: list[Item]) -> None:
            nonlocal compared
            existing = await self._existing(table, target, batch)
            differing = []
            for item in batch:
                current = existing.get(_key(table, item))
                expected = self._expected(table, item, current)
                if current is None or not _same(current, expected):
                    differing.append(expected)
            if differing:
                await put_batch(self._dynamo, target, differing)
            copied.put += len(differing)
            copied.equal += len(batch) - len(differing)
            compared += len(batch)
            self._progress(f"comparing {table.name}", compared)

        async def delete(batch: list[Item]) -> None:
            wanted = await self._existing(table, source, batch, table.key.attributes)
            unwanted = [item for item in batch if _key(table, item) not in wanted]
            if unwanted:
                await delete_batch(self._dynamo, target, table.key, unwanted)
            copied.deleted += len(unwanted)

        await for_each(self._batches(source), put, _BATCHES_IN_FLIGHT)
        keys = self._batches(target, table.key.attributes)
        await for_each(keys, delete, _BATCHES_IN_FLIGHT)
        return copied

    def _expected(self, table: tables.Table, item: Item, current: Item | None) -> Item:
        """The row as it has to be in the target."""
        if table is tables.EMBEDDINGS:
            self.probes.add(item)
        if table in OPENED:
            return ended_row(item, self._moment)
        if table is tables.MODELS:
            name = item["model_version"].S or ""
            self._models[name] = item
            if name not in self._epochs:
                before = epoch_of(current) if current is not None else 0
                self._epochs[name] = next_epoch(epoch_of(item), before)
            return renewed_model(item, self._epochs[name])
        return item

    async def _existing(
        self,
        table: tables.Table,
        name: str,
        items: Sequence[Item],
        attributes: Sequence[str] | None = None,
    ) -> dict[Key, Item]:
        found = await get_batch(self._dynamo, name, table.key, items, attributes)
        return {_key(table, item): item for item in found}

    async def _batches(
        self, name: str, attributes: Sequence[str] | None = None
    ) -> AsyncGenerator[list[Item], None]:
        """All rows of a table, segment by segment."""
        for segment in range(SEGMENTS):
            pages = scan_segment(self._dynamo, name, segment, SEGMENTS, attributes=attributes)
            async for page in pages:
                for start in range(0, len(page), BATCH_ROWS):
                    yield page[start : start + BATCH_ROWS]


def _key(table: tables.Table, item: Item) -> Key:
    return tuple(item[name].S or "" for name in table.key.attributes)


def _same(one: Item, other: Item) -> bool:
    """Whether two rows are equal; the order within a set has no meaning."""
    return one == other or _ordered(AttributeValue(M=one)) == _ordered(AttributeValue(M=other))


def _ordered(value: AttributeValue) -> AttributeValue:
    if value.M is not None:
        return AttributeValue(M={name: _ordered(each) for name, each in value.M.items()})
    if value.L is not None:
        return AttributeValue(L=[_ordered(each) for each in value.L])
    sets = {name: sorted(found) for name in ("SS", "NS", "BS") if (found := getattr(value, name))}
    return msgspec.structs.replace(value, **sets)
