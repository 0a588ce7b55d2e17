"""Point-in-time recovery of tables into the tables of another environment."""

from datetime import datetime
from typing import Any, Final

from botocore.exceptions import ClientError

from core.concurrency import gather
from core.dynamo import tables
from core.models import timestamp
from core.retry import RetryPolicy
from core.settings import Settings
from deploy.aws.clients import code_of, open_client
from deploy.aws.tables import NOT_FOUND, describe_table, has_recovery, recovery_of, shape_problems
from deploy.callbacks import ProgressCallback, ignore
from deploy.errors import CommandError

_POLL: Final = RetryPolicy(first_s=0.1, max_s=15.0, jitter=0.0)
_NOT_FOUND: Final = {NOT_FOUND, "TableNotFoundException"}


async def check_recoverable(settings: Settings, moment: datetime) -> None:
    """Checks that point-in-time recovery of every table reaches up to a moment.

    How far back it reaches, DynamoDB says when a table is restored.

    Raises:
        CommandError: a table cannot be restored; it is named.
    """
    async with open_client("dynamodb", settings) as client:
        names = [settings.table(table.name) for table in tables.ALL]
        await gather(*(_check(client, name, moment) for name in names))


async def _check(client: Any, name: str, moment: datetime) -> None:
    try:
        recovery = await recovery_of(client, name)
    except ClientError as error:
        if code_of(error) in _NOT_FOUND:
            raise CommandError(f"table {name} does not exist") from error
        raise
    if not has_recovery(recovery):
        raise CommandError(f"{name}: point-in-time recovery is off, so it cannot be restored")
    latest = recovery.get("LatestRestorableDateTime")
    if isinstance(latest, datetime) and moment.timestamp() > latest.timestamp():
        raise CommandError(f"{name}: the latest time that can be restored is {timestamp(latest)}")


async def restore_tables(
    settings: Settings, target: Settings, moment: datetime, progress: ProgressCallback = ignore
) -> None:
    """Restores every table of one environment as of a moment into another, and waits for them.

    Keys and indexes of the new tables are verified.

    Tables that an interrupted call of the same source and moment created are waited for.

    Args:
        settings: Of the source environment.
        target: Of the environment to create.
        moment: The time to restore to.
        progress: Called with each new table's full name: 1 of 1 once it is restored.

    Raises:
        CommandError: a table of the target exists and is another, or DynamoDB refuses.
    """
    async with open_client("dynamodb", settings) as client:
        pairs = [(settings.table(table.name), target.table(table.name)) for table in tables.ALL]
        existing = await gather(*(describe_table(client, name) for _, name in pairs))
        for (source, name), table in zip(pairs, existing, strict=True):
            if table is not None and not _is_restored_from(table, source, moment):
                raise CommandError(f"{name} exists already, and is not a restore as of that time")
        for (source, name), table in zip(pairs, existing, strict=True):
            if table is None:
                await client.restore_table_to_point_in_time(
                    SourceTableName=source, TargetTableName=name, RestoreDateTime=moment
                )
            progress(name, 0)
        await gather(*(_wait(client, name, progress) for _, name in pairs))
        for expected in tables.ALL:
            name = target.table(expected.name)
            wrong = list(shape_problems(await describe_table(client, name) or {}, expected))
            if wrong:
                raise CommandError(f"{name} was not restored as it was: {'; '.join(wrong)}")


async def copy_protection(settings: Settings, target: Settings) -> None:
    """Protects the target's tables against deletion where the source's are protected.

    DynamoDB does not restore that setting.

    Raises:
        CommandError: DynamoDB did not take it.
    """
    async with open_client("dynamodb", settings) as client:
        for table in tables.ALL:
            source = await describe_table(client, settings.table(table.name)) or {}
            if source.get("DeletionProtectionEnabled"):
                name = target.table(table.name)
                await client.update_table(TableName=name, DeletionProtectionEnabled=True)
                await _wait(client, name, ignore)


def _is_restored_from(table: dict[str, Any], source: str, moment: datetime) -> bool:
    """Whether DynamoDB describes a table as this restore; ministack does not say."""
    summary = table.get("RestoreSummary") or {}
    arn, restored = str(summary.get("SourceTableArn", "")), summary.get("RestoreDateTime")
    return (
        arn.endswith(f":table/{source}")
        and isinstance(restored, datetime)
        and abs(restored.timestamp() - moment.timestamp()) < 1
    )


async def _wait(client: Any, name: str, progress: ProgressCallback) -> None:
    """Waits until a table and its indexes are active: minutes, or hours for a large one."""
    async for _ in _POLL.attempts():
        table = await describe_table(client, name) or {"TableStatus": "CREATING"}
        status = str(table["TableStatus"])
        indexes = table.get("GlobalSecondaryIndexes") or ()
        if status == "ACTIVE" and all(i.get("IndexStatus", "ACTIVE") == "ACTIVE" for i in indexes):
            progress(name, 1, 1)
            return
        if status not in {"CREATING", "UPDATING", "ACTIVE"}:
            raise CommandError(f"{name} is {status.lower()}, and does not become active")
