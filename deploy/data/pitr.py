"""`k9 restore --to-time`: an environment as of an earlier time, as a new environment.

DynamoDB's point-in-time recovery restores a table only into a new table. The restored tables form a
new environment, which can be served, or copied back over the current one (`deploy.data.copying`).
"""

import re
from datetime import UTC, datetime
from typing import Final

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.wire import Item
from core.models import now, timestamp
from core.resources import open_resources
from core.settings import Settings
from deploy.aws.pitr import check_recoverable, copy_protection, restore_tables
from deploy.aws.tables import ensure_settings, read_tag, write_tag
from deploy.callbacks import MessageCallback, ProgressCallback, ignore
from deploy.data.builds import BuildRequest, IndexProbes, request_builds
from deploy.data.bulk import put_batch, scan_segment
from deploy.data.epochs import OPENED, ended_row, epoch_of, is_open, next_epoch, renewed_model
from deploy.errors import CommandError

TAG: Final = "k9:restored"
"""A tag of the new models table: the restore is complete, and its value is time and source."""
_UNCHANGED: Final = " unchanged"
"""Follows the source where the rows are as DynamoDB restored them, to be copied back."""
_RFC3339: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})", re.ASCII | re.IGNORECASE
)
_ENVIRONMENT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


def parse_time(text: str) -> datetime:
    """A time to restore to, in UTC.

    Raises:
        CommandError: it is not RFC 3339 with an offset, or is in the future.
    """
    try:
        moment = datetime.fromisoformat(text.upper() if _RFC3339.fullmatch(text) else "")
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"--to-time takes RFC 3339, as 2025-09-30T10:00:00Z, and not {text!r}"
        ) from None
    if moment > now():
        raise CommandError(f"{text} is in the future")
    return moment


def environment_name(settings: Settings, moment: datetime, chosen: str | None) -> str:
    """The name of the new environment: the chosen one, else the current one's and the time.

    Raises:
        CommandError: it is not a valid name, or the current environment's.
    """
    name = chosen or f"{settings.environment}-{moment:%Y%m%dt%H%M%S}"
    if not _ENVIRONMENT.fullmatch(name):
        raise CommandError(f"{name!r} is not a valid environment name; choose one with --into")
    if name == settings.environment:
        raise CommandError(f"{name} is the current environment; DynamoDB restores into a new one")
    return name


async def restore_to_time(
    settings: Settings,
    moment: datetime,
    environment: str,
    *,
    served: bool = True,
    progress: ProgressCallback = ignore,
    message: MessageCallback = ignore,
) -> list[BuildRequest] | None:
    """Restores every table as of a moment, as the tables of a new environment.

    The new environment's model versions have a new epoch, its open builds are cancelled, and a
    build of each model version is requested: a worker of that environment runs them. After an
    interruption it can be run again. An environment that is not `served` gets none of that: its
    rows are as they were, to be copied back.

    Returns:
        The builds, one per model version; None if an earlier run has restored all of it.

    Raises:
        CommandError: a table cannot be restored, or a table of the new environment is another.
        Unavailable: DynamoDB did not answer after all attempts.
    """
    target = restored_settings(settings, environment)
    # With the source: its rows would else replace those of another environment.
    stamp = f"{timestamp(moment)} of {settings.environment}" + ("" if served else _UNCHANGED)
    tag = await read_tag(target, tables.MODELS, TAG)
    if tag == stamp or (served and tag == timestamp(moment)):  # as earlier releases wrote it
        return None
    if not served and tag is not None:
        what = "of another time or environment"
        if not tag.endswith(_UNCHANGED):
            what = "to be served, and may have changed since"
        raise CommandError(
            f"{environment} was restored {what} ({tag}): choose another name by --into"
        )
    await check_recoverable(settings, moment)
    await restore_tables(settings, target, moment, progress)
    await ensure_settings(target, message)
    await copy_protection(settings, target)
    if not served:
        await write_tag(target, tables.MODELS, TAG, stamp)
        return []
    async with open_resources(target) as resources:
        models = await _renew(resources.dynamo, target)
        builds = await request_builds(resources, models, IndexProbes())
    await write_tag(target, tables.MODELS, TAG, stamp)
    return builds


def restored_settings(settings: Settings, environment: str) -> Settings:
    """The settings of the environment that a restore makes, in the same account."""
    return msgspec.structs.replace(
        settings, environment=environment, tables=type(settings.tables)()
    )


async def _renew(dynamo: Dynamo, target: Settings) -> list[Item]:
    """Raises epochs and cancels builds and imports, in tables that nothing serves yet.

    Returns:
        The records of the model versions as they were.
    """
    moment = timestamp(now())
    models: list[Item] = []
    for table in OPENED:
        name = target.table(table.name)
        async for page in scan_segment(dynamo, name):
            for row in page:
                if is_open(row):
                    await put_batch(dynamo, name, [ended_row(row, moment)])
    name = target.table(tables.MODELS.name)
    async for page in scan_segment(dynamo, name):
        for model in page:
            models.append(model)
            renewed = renewed_model(model, next_epoch(epoch_of(model)))
            await put_batch(dynamo, name, [renewed])
    return models
