"""Two environments on one bucket, one Redis and one pair of directories."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import msgspec

from core.dynamo import tables
from core.dynamo.expressions import Update, expressions, key
from core.models import Build, Model
from core.names import legacy_version_prefix
from core.resources import Resources, open_resources
from core.settings import Settings
from core.versions import VersionRecord
from deploy.data.bulk import put_batch, scan_segment
from tests.emulators import create_tables


@dataclass(frozen=True, slots=True)
class Pair:
    """An environment, and one that was made from it."""

    source: Resources
    other: Resources

    async def copy_tables(self) -> None:
        """Makes the other one's tables what the source's are, as AWS's own console restores them.

        No epoch is new and no build has ended: both believe that all of it is theirs.
        """
        for table in tables.ALL:
            here, there = (each.settings.table(table.name) for each in (self.source, self.other))
            async for page in scan_segment(self.source.dynamo, here, 0, 1):
                for start in range(0, len(page), 25):
                    await put_batch(self.source.dynamo, there, page[start : start + 25])


def beside(settings: Settings, environment: str) -> Settings:
    """The settings of another environment on the same bucket, Redis and disk."""
    return msgspec.structs.replace(settings, environment=environment)


@asynccontextmanager
async def open_pair(settings: Settings) -> AsyncIterator[Pair]:
    """The two; the other one's tables are empty."""
    other = beside(settings, f"t-{uuid4().hex[:12]}")
    await create_tables(other)
    async with open_resources(settings) as source, open_resources(other) as opened:
        yield Pair(source, opened)


async def files_of(resources: Resources, record: VersionRecord) -> set[str]:
    """The keys of a version in S3."""
    return set(await resources.objects.list_keys(record.prefix))


async def record_of(resources: Resources, model_version: str) -> tuple[Model, VersionRecord]:
    """A model version, and the record of its current version."""
    model = await resources.models.get_model(model_version)
    build = await resources.builds.get_build(model.current_build_id or "")
    return model, VersionRecord.of(build)


async def as_published_early(resources: Resources, build: Build) -> VersionRecord:
    """Makes a published build what release 23e14f8 would have left of it."""
    record = VersionRecord.of(build)
    early = legacy_version_prefix(build.model_version, build.build_id, build.fence)
    for name in await resources.objects.list_keys(record.prefix):
        data = await resources.objects.get_bytes(name, 1 << 24)
        await resources.objects.put(early + name.removeprefix(record.prefix), data)
    await resources.objects.delete(await resources.objects.list_keys(record.prefix))
    await resources.dynamo.call(
        "update_item",
        TableName=resources.settings.table(tables.BUILDS.name),
        Key=key(build_id=build.build_id),
        **expressions(update=Update(remove=("prefix",))),
    )
    return msgspec.structs.replace(record, prefix=early)
