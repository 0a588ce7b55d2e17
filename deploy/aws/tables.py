"""What state an environment's tables are in: settings, sizes, counts, point-in-time recovery."""

from collections.abc import Callable
from typing import Any

import msgspec
from botocore.exceptions import ClientError

from core.settings import Settings
from deploy.aws.clients import code_of, open_client, together
from deploy.errors import CommandError

TABLES = ("users", "reports", "embeddings", "models", "builds", "idempotency")
TTL_ATTRIBUTES = {"idempotency": "expires_at"}
SCAN_SEGMENTS = 8
"""Parts of a table that an exact count scans side by side."""


class TableDescription(msgspec.Struct, frozen=True):
    """One table as DynamoDB tells of it."""

    name: str
    status: str
    """`ACTIVE` and so on; `MISSING` where there is no such table."""
    key: str = ""
    """`product_id + model_version`."""
    indexes: tuple[str, ...] = ()
    items: int = 0
    """DynamoDB's own figure: up to six hours old."""
    size_bytes: int = 0
    """As old as `items`."""
    recovery: bool = False
    """Point-in-time recovery."""
    encrypted: bool = False
    """By a key of KMS, as the template asks."""
    deletion_protection: bool = False
    ttl_attribute: str | None = None


async def describe_tables(settings: Settings) -> list[TableDescription]:
    """All six tables of the environment, missing ones too.

    Raises:
        CommandError: when DynamoDB cannot be asked.
    """
    async with open_client("dynamodb", settings) as client:
        return await together(*(_describe(client, settings.table(table)) for table in TABLES))


async def _describe(client: Any, name: str) -> TableDescription:
    try:
        table = (await client.describe_table(TableName=name))["Table"]
    except ClientError as error:
        if code_of(error) == "ResourceNotFoundException":
            return TableDescription(name, "MISSING")
        raise
    ttl = (await client.describe_time_to_live(TableName=name))["TimeToLiveDescription"]
    return TableDescription(
        name=name,
        status=table["TableStatus"],
        key=" + ".join(part["AttributeName"] for part in table["KeySchema"]),
        indexes=tuple(i["IndexName"] for i in table.get("GlobalSecondaryIndexes") or ()),
        items=table.get("ItemCount", 0),
        size_bytes=table.get("TableSizeBytes", 0),
        recovery=await _recovery(client, name),
        encrypted=(table.get("SSEDescription") or {}).get("Status") in {"ENABLED", "UPDATING"},
        deletion_protection=table.get("DeletionProtectionEnabled", False),
        ttl_attribute=ttl.get("AttributeName"),
    )


async def count_items(
    settings: Settings,
    *,
    exact: bool = True,
    counted: Callable[[str, int], None] | None = None,
) -> dict[str, int]:
    """How many items each table has, by its full name.

    Exact reads every table whole (read units!), as a parallel scan; otherwise DynamoDB's own
    figure is taken, up to six hours old. `counted` is told of each page: (table, items in it).

    Raises:
        CommandError: when a table is missing or DynamoDB cannot be asked.
    """
    if not exact:
        tables = await describe_tables(settings)
        missing = [table.name for table in tables if table.status == "MISSING"]
        if missing:
            raise CommandError(f"there is no table {missing[0]}: `k9 tables create` makes it")
        return {table.name: table.items for table in tables}
    names = [settings.table(table) for table in TABLES]
    async with open_client("dynamodb", settings) as client:
        counts = await together(*(_count(client, name, counted) for name in names))
    return dict(zip(names, counts, strict=True))


async def _count(client: Any, name: str, counted: Callable[[str, int], None] | None) -> int:
    async def segment(number: int) -> int:
        count = 0
        start: dict[str, Any] = {}
        while True:
            page = await client.scan(
                TableName=name,
                Select="COUNT",
                Segment=number,
                TotalSegments=SCAN_SEGMENTS,
                **start,
            )
            count += int(page["Count"])
            if counted:
                counted(name, page["Count"])
            if "LastEvaluatedKey" not in page:
                return count
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    try:
        return sum(await together(*(segment(n) for n in range(SCAN_SEGMENTS))))
    except ClientError as error:
        if code_of(error) == "ResourceNotFoundException":
            raise CommandError(f"there is no table {name}: `k9 tables create` makes it") from error
        raise


async def ensure_settings(settings: Settings, report: Callable[[str], None]) -> tuple[str, ...]:
    """Turns on by the API what the template asks for and its maker took without applying it.

    Both emulators do that to point-in-time recovery, TTL and encryption; in an account this
    only reads.

    Returns:
        What had to be turned on: `k9-users-dev: point-in-time recovery`.

    Raises:
        CommandError: when point-in-time recovery is off even then.
    """
    async with open_client("dynamodb", settings) as client:
        lists = await together(*(_ensure(client, table, settings.table(table)) for table in TABLES))
    turned_on = tuple(line for lines in lists for line in lines)
    for line in turned_on:
        report(f"{line} turned on")
    return turned_on


async def _ensure(client: Any, table: str, name: str) -> list[str]:
    turned_on = []
    if not await _recovery(client, name):
        await client.update_continuous_backups(
            TableName=name,
            PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
        )
        if not await _recovery(client, name):
            raise CommandError(f"{name}: point-in-time recovery could not be turned on")
        turned_on.append(f"{name}: point-in-time recovery")
    described = (await client.describe_table(TableName=name))["Table"]
    # An account answers UPDATING for a while after the stack is done: that is on its way.
    if (described.get("SSEDescription") or {}).get("Status") not in {"ENABLED", "UPDATING"}:
        updated = await client.update_table(TableName=name, SSESpecification={"Enabled": True})
        if "SSEDescription" in updated["TableDescription"]:
            turned_on.append(f"{name}: encryption")
    attribute = TTL_ATTRIBUTES.get(table)
    if attribute:
        ttl = (await client.describe_time_to_live(TableName=name))["TimeToLiveDescription"]
        if ttl["TimeToLiveStatus"] not in {"ENABLED", "ENABLING"}:
            await client.update_time_to_live(
                TableName=name,
                TimeToLiveSpecification={"AttributeName": attribute, "Enabled": True},
            )
            turned_on.append(f"{name}: TTL on {attribute}")
    return turned_on


async def _recovery(client: Any, name: str) -> bool:
    reply = await client.describe_continuous_backups(TableName=name)
    description = reply["ContinuousBackupsDescription"]
    point_in_time = description.get("PointInTimeRecoveryDescription", {})
    return bool(point_in_time.get("PointInTimeRecoveryStatus") == "ENABLED")


async def read_mark(settings: Settings, table: str, key: str) -> str | None:
    """The value of a tag of a table; None when there is none, or no such table.

    Raises:
        CommandError: when DynamoDB cannot be asked.
    """
    async with open_client("dynamodb", settings) as client:
        try:
            arn = await _arn(client, settings.table(table))
        except ClientError as error:
            if code_of(error) == "ResourceNotFoundException":
                return None
            raise
        tags = (await client.list_tags_of_resource(ResourceArn=arn)).get("Tags", [])
    return next((str(tag["Value"]) for tag in tags if tag["Key"] == key), None)


async def write_mark(settings: Settings, table: str, key: str, value: str) -> None:
    """Sets a tag of a table.

    Raises:
        CommandError: when DynamoDB does not take it.
    """
    async with open_client("dynamodb", settings) as client:
        arn = await _arn(client, settings.table(table))
        await client.tag_resource(ResourceArn=arn, Tags=[{"Key": key, "Value": value}])


async def _arn(client: Any, name: str) -> str:
    return str((await client.describe_table(TableName=name))["Table"]["TableArn"])


async def remove_mark(settings: Settings, table: str, key: str) -> None:
    """Removes a tag of a table; none is fine too.

    Raises:
        CommandError: when DynamoDB does not take it.
    """
    async with open_client("dynamodb", settings) as client:
        arn = await _arn(client, settings.table(table))
        await client.untag_resource(ResourceArn=arn, TagKeys=[key])
