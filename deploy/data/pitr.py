"""`k9 restore --to-time`: an environment as it was, as a new one beside it.

DynamoDB brings back a table into a new table only. The six of them together are an environment,
which can be looked at, served, or copied back whole by `k9 backup` and `k9 restore`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.wire import Item
from core.models import now, timestamp
from core.resources import open_resources
from core.settings import Settings
from deploy.aws.pitr import Told, check_recoverable, protect_like, recover_tables
from deploy.aws.tables import ensure_settings, read_mark, write_mark
from deploy.data.bulk import put_batch, scan_segment
from deploy.data.epochs import (
    ended_build,
    epoch_of,
    is_open,
    next_epoch,
    renewed_model,
)
from deploy.data.request_builds import Probes, Requested, rebuild
from deploy.errors import CommandError

MARK: Final = "k9:restored"
"""A tag of the new models table: all of it is done, and this is the time."""
_RFC3339: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})", re.ASCII | re.IGNORECASE
)
_ENVIRONMENT: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)


class Recovered(msgspec.Struct, frozen=True):
    """What a recovery came to."""

    environment: str
    requested: list[Requested]
    """Empty where the same was done before."""
    already: bool
    """All of it was done by an earlier run."""


def parse_time(text: str) -> datetime:
    """A time to restore to, in UTC.

    Raises:
        CommandError: it is not RFC 3339 with an offset, or is to come.
    """
    try:
        read = text.upper() if _RFC3339.fullmatch(text) else ""
        moment = datetime.fromisoformat(read).astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"--to-time takes RFC 3339, as 2025-09-30T10:00:00Z, and not {text!r}"
        ) from None
    if moment > now():
        raise CommandError(f"{text} is to come")
    return moment


def environment_for(settings: Settings, moment: datetime, wanted: str | None) -> str:
    """The name of the new environment: the wanted one, else the old one's with the time.

    Raises:
        CommandError: it is no name, or the present one.
    """
    name = wanted or f"{settings.environment}-{moment:%Y%m%dt%H%M%S}"
    if not _ENVIRONMENT.fullmatch(name):
        raise CommandError(f"{name!r} is no environment's name; give one with --into")
    if name == settings.environment:
        raise CommandError(f"{name} is the present environment; DynamoDB restores beside it")
    return name


async def recover(
    settings: Settings,
    moment: datetime,
    environment: str,
    *,
    told: Told = lambda _name, _status: None,
    report: Callable[[str], None] = lambda _line: None,
) -> Recovered:
    """Brings every table back as it was at a moment, as the tables of a new environment.

    Its model versions then have a new epoch, its open builds have ended, and a build of each model
    version is requested there: a worker of that environment runs them. Interrupted, it can be run
    again.

    Raises:
        CommandError: a table cannot be brought back, or one of the new names is taken.
        Unavailable: DynamoDB did not answer after all tries.
    """
    target = msgspec.structs.replace(
        settings, environment=environment, tables=type(settings.tables)()
    )
    stamp = timestamp(moment)
    if await read_mark(target, tables.MODELS.name, MARK) == stamp:
        return Recovered(environment, [], already=True)
    await check_recoverable(settings, moment)
    await recover_tables(settings, target, moment, told)
    await ensure_settings(target, report)
    await protect_like(settings, target)
    async with open_resources(target) as resources:
        models = await _renew(resources.dynamo, target)
        requested = await rebuild(resources, models, Probes())
    await write_mark(target, tables.MODELS.name, MARK, stamp)
    return Recovered(environment, requested, already=False)


async def _renew(dynamo: Dynamo, target: Settings) -> list[Item]:
    """New epochs and ended builds, in tables that nobody serves yet; the models as they were."""
    moment = timestamp(now())
    models: list[Item] = []
    builds = target.table(tables.BUILDS.name)
    async for page in scan_segment(dynamo, builds, 0, 1):
        for build in page:
            if is_open(build):
                await put_batch(dynamo, builds, [ended_build(build, moment)])
    name = target.table(tables.MODELS.name)
    async for page in scan_segment(dynamo, name, 0, 1):
        for model in page:
            models.append(model)
            renewed = renewed_model(model, next_epoch(epoch_of(model)))
            await put_batch(dynamo, name, [renewed])
    return models
