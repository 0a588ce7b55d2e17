"""Point-in-time recovery: tables as they were, beside those that are there now."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from botocore.exceptions import ClientError

from core.models import timestamp
from core.settings import Settings
from deploy.aws.clients import code_of, open_client, together
from deploy.aws.tables import TABLES
from deploy.errors import CommandError

_POLL_FIRST_S, _POLL_MAX_S = 0.1, 15.0
_MISSING: Final = "ResourceNotFoundException"

Told = Callable[[str, str], None]
"""Is told of each table, by its full name, and its status."""


async def check_recoverable(settings: Settings, moment: datetime) -> None:
    """Holds every table to point-in-time recovery that reaches up to a moment.

    How far back it reaches is DynamoDB's to say, when it is asked for the tables.

    Raises:
        CommandError: naming the table that cannot be brought back.
    """
    async with open_client("dynamodb", settings) as client:
        await together(*(_check(client, settings.table(table), moment) for table in TABLES))


async def _check(client: Any, name: str, moment: datetime) -> None:
    try:
        reply = await client.describe_continuous_backups(TableName=name)
    except ClientError as error:
        if code_of(error) in {_MISSING, "TableNotFoundException"}:
            raise CommandError(f"there is no table {name}") from error
        raise
    described = reply["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    if described.get("PointInTimeRecoveryStatus") != "ENABLED":
        raise CommandError(f"{name}: point-in-time recovery is off: nothing is there to restore")
    latest = described.get("LatestRestorableDateTime")
    if isinstance(latest, datetime) and moment.timestamp() > latest.timestamp():
        raise CommandError(
            f"{name}: the latest time that can be restored is {timestamp(latest)} now"
        )


async def recover_tables(
    settings: Settings, target: Settings, moment: datetime, told: Told = lambda _name, _status: None
) -> None:
    """Restores every table of one environment as of a moment into another, and waits for them.

    Tables that an interrupted call of the same source and moment has made are waited for.

    Raises:
        CommandError: a table of the target is there and is another, or DynamoDB refuses.
    """
    async with open_client("dynamodb", settings) as client:
        pairs = [(settings.table(table), target.table(table)) for table in TABLES]
        there = await together(*(_described(client, name) for _, name in pairs))
        for (source, name), table in zip(pairs, there, strict=True):
            if table is not None and not _restored_from(table, source, moment):
                raise CommandError(f"{name} is there already, and is no restore as of that time")
        for (source, name), table in zip(pairs, there, strict=True):
            if table is None:
                await client.restore_table_to_point_in_time(
                    SourceTableName=source, TargetTableName=name, RestoreDateTime=moment
                )
            told(name, "restoring")
        await together(*(_wait(client, name, told) for _, name in pairs))


async def protect_like(settings: Settings, target: Settings) -> None:
    """Protects the target's tables against deletion where the source's are.

    A restored table has none of its source's protection.

    Raises:
        CommandError: when DynamoDB does not take it.
    """
    async with open_client("dynamodb", settings) as client:
        for table in TABLES:
            source = await _described(client, settings.table(table)) or {}
            if source.get("DeletionProtectionEnabled"):
                await client.update_table(
                    TableName=target.table(table), DeletionProtectionEnabled=True
                )
                await _wait(client, target.table(table), lambda _name, _status: None)


async def _described(client: Any, name: str) -> dict[str, Any] | None:
    try:
        table: dict[str, Any] = (await client.describe_table(TableName=name))["Table"]
    except ClientError as error:
        if code_of(error) == _MISSING:
            return None
        raise
    return table


def _restored_from(table: dict[str, Any], source: str, moment: datetime) -> bool:
    """Whether DynamoDB says of a table that it is this restore; ministack says nothing."""
    summary = table.get("RestoreSummary") or {}
    arn, restored = str(summary.get("SourceTableArn", "")), summary.get("RestoreDateTime")
    return (
        arn.endswith(f":table/{source}")
        and isinstance(restored, datetime)
        and abs(restored.timestamp() - moment.timestamp()) < 1
    )


async def _wait(client: Any, name: str, told: Told) -> None:
    """Returns once a table and its indexes are there: minutes, or hours for a large one."""
    pause_s = _POLL_FIRST_S
    while True:
        table = await _described(client, name) or {"TableStatus": "CREATING"}
        status = str(table["TableStatus"])
        indexes = table.get("GlobalSecondaryIndexes") or ()
        if status == "ACTIVE" and all(i.get("IndexStatus", "ACTIVE") == "ACTIVE" for i in indexes):
            told(name, "restored")
            return
        if status not in {"CREATING", "UPDATING", "ACTIVE"}:
            raise CommandError(f"{name} is {status.lower()}, and does not get ready")
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_MAX_S)
