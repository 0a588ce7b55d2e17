"""An environment's tables by DynamoDB's control plane: descriptions, settings, tags.

Every function raises CommandError if DynamoDB did not answer or did not accept a call.
"""

from typing import Any, Final

import msgspec
from botocore.exceptions import ClientError

from core.concurrency import gather
from core.dynamo import tables
from core.settings import Settings
from deploy.aws.clients import code_of, open_client
from deploy.callbacks import MessageCallback
from deploy.errors import CommandError

NOT_FOUND: Final = "ResourceNotFoundException"


class TableDescription(msgspec.Struct, frozen=True):
    """One table, as DynamoDB describes it."""

    name: str
    status: str
    """`ACTIVE` and so on; `MISSING` if there is no such table."""
    key: str = ""
    """`product_id + model_version`."""
    indexes: tuple[str, ...] = ()
    items: int = 0
    """DynamoDB's own figure: up to six hours old."""
    size_bytes: int = 0
    """As old as `items`."""
    recovery: bool = False
    """Whether point-in-time recovery is on."""
    encrypted: bool = False
    """By a key of KMS, as in the template."""
    deletion_protection: bool = False
    ttl_attribute: str | None = None


async def describe_tables(settings: Settings) -> list[TableDescription]:
    """All tables of the environment, missing ones too."""
    async with open_client("dynamodb", settings) as client:
        names = [settings.table(table.name) for table in tables.ALL]
        return await gather(*(_describe(client, name) for name in names))


async def _describe(client: Any, name: str) -> TableDescription:
    table = await describe_table(client, name)
    if table is None:
        return TableDescription(name, "MISSING")
    ttl = (await client.describe_time_to_live(TableName=name))["TimeToLiveDescription"]
    return TableDescription(
        name=name,
        status=table["TableStatus"],
        key=" + ".join(part["AttributeName"] for part in table["KeySchema"]),
        indexes=tuple(i["IndexName"] for i in table.get("GlobalSecondaryIndexes") or ()),
        items=table.get("ItemCount", 0),
        size_bytes=table.get("TableSizeBytes", 0),
        recovery=has_recovery(await recovery_of(client, name)),
        encrypted=_is_encrypted(table),
        deletion_protection=table.get("DeletionProtectionEnabled", False),
        ttl_attribute=ttl.get("AttributeName"),
    )


async def describe_table(client: Any, name: str) -> dict[str, Any] | None:
    """DynamoDB's description of a table; None if there is no such table."""
    try:
        table: dict[str, Any] = (await client.describe_table(TableName=name))["Table"]
    except ClientError as error:
        if code_of(error) == NOT_FOUND:
            return None
        raise
    return table


async def recovery_of(client: Any, name: str) -> dict[str, Any]:
    """DynamoDB's description of a table's point-in-time recovery."""
    reply = await client.describe_continuous_backups(TableName=name)
    backups = reply["ContinuousBackupsDescription"]
    description: dict[str, Any] = backups.get("PointInTimeRecoveryDescription", {})
    return description


def has_recovery(description: dict[str, Any]) -> bool:
    """Whether point-in-time recovery is on."""
    return bool(description.get("PointInTimeRecoveryStatus") == "ENABLED")


def _is_encrypted(table: dict[str, Any]) -> bool:
    # An account answers UPDATING for a while after the stack is complete.
    return (table.get("SSEDescription") or {}).get("Status") in {"ENABLED", "UPDATING"}


async def ensure_settings(settings: Settings, message: MessageCallback) -> None:
    """Turns on settings of the template that CloudFormation or a restore left off.

    Both emulators leave point-in-time recovery, TTL and encryption off; in an account this only
    reads.

    Raises:
        CommandError: point-in-time recovery cannot be turned on.
    """
    async with open_client("dynamodb", settings) as client:
        lists = await gather(
            *(_ensure(client, table, settings.table(table.name)) for table in tables.ALL)
        )
    for turned_on in lists:
        for setting in turned_on:
            message(f"{setting} turned on")


async def _ensure(client: Any, table: tables.Table, name: str) -> list[str]:
    """Returns what was turned on: `k9-users-dev: point-in-time recovery`."""
    turned_on = []
    if not has_recovery(await recovery_of(client, name)):
        await client.update_continuous_backups(
            TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
        if not has_recovery(await recovery_of(client, name)):
            raise CommandError(f"{name}: point-in-time recovery could not be turned on")
        turned_on.append(f"{name}: point-in-time recovery")
    if not _is_encrypted(await describe_table(client, name) or {}):
        updated = await client.update_table(TableName=name, SSESpecification={"Enabled": True})
        if "SSEDescription" in updated["TableDescription"]:
            turned_on.append(f"{name}: encryption")
    if table.ttl is not None:
        ttl = (await client.describe_time_to_live(TableName=name))["TimeToLiveDescription"]
        if ttl["TimeToLiveStatus"] not in {"ENABLED", "ENABLING"}:
            await client.update_time_to_live(
                TableName=name,
                TimeToLiveSpecification={"AttributeName": table.ttl, "Enabled": True},
            )
            turned_on.append(f"{name}: TTL on {table.ttl}")
    return turned_on


async def read_tag(settings: Settings, table: tables.Table, key: str) -> str | None:
    """The value of a table's tag; None if there is no such tag or table."""
    async with open_client("dynamodb", settings) as client:
        described = await describe_table(client, settings.table(table.name))
        if described is None:
            return None
        reply = await client.list_tags_of_resource(ResourceArn=described["TableArn"])
    return next((str(tag["Value"]) for tag in reply.get("Tags", []) if tag["Key"] == key), None)


async def write_tag(settings: Settings, table: tables.Table, key: str, value: str) -> None:
    """Sets a tag of a table."""
    async with open_client("dynamodb", settings) as client:
        arn = await _arn(client, settings.table(table.name))
        await client.tag_resource(ResourceArn=arn, Tags=[{"Key": key, "Value": value}])


async def remove_tag(settings: Settings, table: tables.Table, key: str) -> None:
    """Removes a tag of a table, if it has one."""
    async with open_client("dynamodb", settings) as client:
        arn = await _arn(client, settings.table(table.name))
        await client.untag_resource(ResourceArn=arn, TagKeys=[key])


async def _arn(client: Any, name: str) -> str:
    return str((await client.describe_table(TableName=name))["Table"]["TableArn"])
