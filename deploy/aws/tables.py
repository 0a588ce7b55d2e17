"""An environment's tables by DynamoDB's control plane: descriptions, settings, tags.

Every function raises CommandError if DynamoDB did not answer or did not accept a call.
"""

from collections.abc import Iterator
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
_USABLE: Final = frozenset({"ACTIVE", "UPDATING"})
"""States of a table or an index in which it is read and written."""


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
    """Of the table without its indexes; as old as `items`."""
    index_bytes: int = 0
    """Of all indexes."""
    provisioned: tuple[int, int] | None = None
    """Read and write units a second of table and indexes; None: on demand."""
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
    indexes = table.get("GlobalSecondaryIndexes") or ()
    return TableDescription(
        name=name,
        status=table["TableStatus"],
        key=" + ".join(part["AttributeName"] for part in table["KeySchema"]),
        indexes=tuple(i["IndexName"] for i in indexes),
        items=table.get("ItemCount", 0),
        size_bytes=table.get("TableSizeBytes", 0),
        index_bytes=sum(i.get("IndexSizeBytes", 0) for i in indexes),
        provisioned=_provisioned(table),
        recovery=has_recovery(await recovery_of(client, name)),
        encrypted=_is_encrypted(table),
        deletion_protection=table.get("DeletionProtectionEnabled", False),
        ttl_attribute=ttl.get("AttributeName"),
    )


def _provisioned(table: dict[str, Any]) -> tuple[int, int] | None:
    if (table.get("BillingModeSummary") or {}).get("BillingMode") == "PAY_PER_REQUEST":
        return None
    units = [
        part.get("ProvisionedThroughput") or {}
        for part in (table, *(table.get("GlobalSecondaryIndexes") or ()))
    ]
    reads, writes = (
        sum(int(each.get(f"{kind}CapacityUnits", 0)) for each in units)
        for kind in ("Read", "Write")
    )
    # An emulator may leave the billing mode out; a provisioned table has units.
    return (reads, writes) if reads or writes else None


async def describe_table(client: Any, name: str) -> dict[str, Any] | None:
    """DynamoDB's description of a table; None if there is no such table."""
    try:
        table: dict[str, Any] = (await client.describe_table(TableName=name))["Table"]
    except ClientError as error:
        if code_of(error) == NOT_FOUND:
            return None
        raise
    return table


def shape_problems(found: dict[str, Any], table: tables.Table) -> Iterator[str]:
    """What DynamoDB describes of a table that is not as `core.dynamo.tables` defines it."""
    if found["TableStatus"] not in _USABLE:
        yield f"is {found['TableStatus'].lower()}, not active"
    types = {each["AttributeName"]: each["AttributeType"] for each in found["AttributeDefinitions"]}
    if (key := _key_of(found)) != table.key.attributes:
        yield f"has the key {' + '.join(key)} in place of {' + '.join(table.key.attributes)}"
    existing = {each["IndexName"]: each for each in found.get("GlobalSecondaryIndexes") or ()}
    used = set(table.key.attributes)
    for name, expected in table.indexes.items():
        index = existing.get(name)
        if index is None:
            yield f"has no index {name}"
            continue
        used |= set(expected.attributes)
        if index.get("IndexStatus", "ACTIVE") not in _USABLE:
            yield f"{name} is {index['IndexStatus'].lower()}, not active"
        if (key := _key_of(index)) != expected.attributes:
            yield f"{name} has the key {' + '.join(key)} in place of " + " + ".join(
                expected.attributes
            )
        if index["Projection"]["ProjectionType"] != "ALL":
            yield f"{name} does not project all attributes"
    for attribute in sorted(used):
        if types.get(attribute, "S") != "S":
            yield f"its key attribute {attribute} is of type {types[attribute]} in place of S"


def _key_of(described: dict[str, Any]) -> tuple[str, ...]:
    parts = sorted(described["KeySchema"], key=lambda part: str(part["KeyType"]))  # HASH, RANGE
    return tuple(str(part["AttributeName"]) for part in parts)


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

    A table that was deleted behind CloudFormation's back, which does not notice it, is created
    again, empty. Both emulators leave point-in-time recovery, TTL and encryption off; in an account
    this only reads otherwise.

    Raises:
        CommandError: point-in-time recovery cannot be turned on.
    """
    async with open_client("dynamodb", settings) as client:
        for table in tables.ALL:
            name = settings.table(table.name)
            if await describe_table(client, name) is None:
                await _create(client, table, name, protected=settings.environment != "dev")
                message(f"{name}: was deleted; created again, empty: `k9 restore` fills it")
        lists = await gather(
            *(_ensure(client, table, settings.table(table.name)) for table in tables.ALL)
        )
    for turned_on in lists:
        for setting in turned_on:
            message(f"{setting} turned on")


async def _create(client: Any, table: tables.Table, name: str, *, protected: bool) -> None:
    """Creates a table as the template defines it, and waits for it."""
    keys = (table.key, *table.indexes.values())
    attributes = sorted({attribute for key in keys for attribute in key.attributes})
    indexes = [
        {"IndexName": index, "KeySchema": _schema(key), "Projection": {"ProjectionType": "ALL"}}
        for index, key in table.indexes.items()
    ]
    await client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        DeletionProtectionEnabled=protected,
        SSESpecification={"Enabled": True},
        AttributeDefinitions=[{"AttributeName": a, "AttributeType": "S"} for a in attributes],
        KeySchema=_schema(table.key),
        **({"GlobalSecondaryIndexes": indexes} if indexes else {}),
    )
    waiter = client.get_waiter("table_exists")
    await waiter.wait(TableName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 600})


def _schema(key: tables.Key) -> list[dict[str, str]]:
    kinds = ("HASH", "RANGE")
    return [
        {"AttributeName": name, "KeyType": kind}
        for name, kind in zip(key.attributes, kinds, strict=False)
    ]


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
