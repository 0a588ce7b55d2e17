"""The one template, on both emulators."""

import re
from datetime import timedelta
from pathlib import Path

import aioboto3
import msgspec
import pytest

from core.dynamo import tables
from core.dynamo.client import open_dynamo
from core.errors import TableMissing
from core.models import now
from core.settings import Settings
from deploy.aws.costs import Consumption, read_consumption
from deploy.aws.data_stack import create_tables
from deploy.aws.tables import describe_tables, read_tag, write_tag
from deploy.data.bulk import count_items
from tests.e2e.commands import run_k9
from tests.emulators import settings_for


async def test_tables_are_made_once_and_then_left_alone(emulator: Settings) -> None:
    """A second run changes nothing; keys, indexes and safeguards are as the contract has them."""
    said: list[str] = []
    first = await create_tables(emulator, message=said.append)
    assert first.change == "created"
    assert re.fullmatch(rf"k9-indexes-{emulator.environment}-\d{{12}}", first.bucket)
    assert any("point-in-time recovery" in line for line in said)
    second = await create_tables(emulator)
    assert second.change == "unchanged"
    assert second.outputs == first.outputs

    described = {table.name: table for table in await describe_tables(emulator)}
    assert {name: table.key for name, table in described.items()} == {
        f"k9-users-{emulator.environment}": "user_id",
        f"k9-reports-{emulator.environment}": "id",
        f"k9-embeddings-{emulator.environment}": "product_id + model_version",
        f"k9-models-{emulator.environment}": "model_version",
        f"k9-builds-{emulator.environment}": "build_id",
        f"k9-idempotency-{emulator.environment}": "caller + key",
        f"k9-imports-{emulator.environment}": "import_id",
    }
    assert {index for table in described.values() for index in table.indexes} == {
        "UserReportsIndex",
        "ModelVersionIndex",
        "ModelBuildsIndex",
        "OpenBuildsIndex",
        "ModelImportsIndex",
        "OpenImportsIndex",
    }
    assert all(table.recovery for table in described.values())
    assert all(table.deletion_protection for table in described.values())  # not `dev`
    assert described[f"k9-idempotency-{emulator.environment}"].ttl_attribute == "expires_at"


async def test_a_table_that_was_deleted_is_created_again(emulator: Settings) -> None:
    """Which CloudFormation does not notice: with its key, indexes, TTL and safeguards, empty."""
    settings = settings_for(emulator.aws.endpoint_url or "")
    await create_tables(settings, protection="false")
    before = await describe_tables(settings)
    said: list[str] = []
    async with aioboto3.Session().client(
        "dynamodb", endpoint_url=emulator.aws.endpoint_url
    ) as client:
        for table in (tables.BUILDS, tables.IDEMPOTENCY):
            name = settings.table(table.name)
            await client.update_table(TableName=name, DeletionProtectionEnabled=False)
            await client.delete_table(TableName=name)
    await create_tables(settings, protection="false", message=said.append)
    assert sum("was deleted; created again" in line for line in said) == 2
    after = await describe_tables(settings)
    for old, new in zip(before, after, strict=True):
        assert (new.key, new.ttl_attribute, new.recovery) == (old.key, old.ttl_attribute, True)
        assert sorted(new.indexes) == sorted(old.indexes)


async def test_protection_is_turned_off_in_place(ministack: str) -> None:
    """An update moves settings, and keeps the tables; moto leaves protection on."""
    settings = settings_for(ministack)
    await create_tables(settings)
    await write_tag(settings, tables.EMBEDDINGS, "k9:test", "here")
    changed = await create_tables(settings, protection="false")
    assert changed.change == "updated"
    assert not any(table.deletion_protection for table in await describe_tables(settings))
    assert await read_tag(settings, tables.EMBEDDINGS, "k9:test") == "here"


async def test_counts_are_exact(emulator: Settings) -> None:
    """Every row is counted once, over all segments of the scan."""
    await create_tables(emulator)
    session = aioboto3.Session()
    async with session.client(
        "dynamodb", region_name=emulator.aws.region, endpoint_url=emulator.aws.endpoint_url
    ) as client:
        for number in range(30):
            item = {"user_id": {"S": f"u{number}"}}
            await client.put_item(TableName=emulator.table("users"), Item=item)
    progress: dict[str, int] = {}

    def advanced(table: str, completed: int, _total: int | None = None) -> None:
        progress[table] = completed

    async with open_dynamo(emulator) as dynamo:
        counts = await count_items(dynamo, emulator, advanced)
    assert counts == {
        emulator.table(table.name): 30 if table is tables.USERS else 0 for table in tables.ALL
    }
    assert sum(progress.values()) == 30


async def test_missing_tables_say_what_makes_them(emulator: Settings) -> None:
    """Describing names them as missing; counting refuses."""
    other = Settings(environment="never-made", aws=emulator.aws)
    assert {table.status for table in await describe_tables(other)} == {"MISSING"}
    async with open_dynamo(other) as dynamo:
        with pytest.raises(TableMissing, match="k9 tables create"):
            await count_items(dynamo, other, lambda *_: None)


async def test_a_months_cost_is_shown_by_size_and_rate(moto: str, tmp_path: Path) -> None:
    """The units of the last day come from CloudWatch, for the table and each of its indexes."""
    settings = settings_for(moto)
    await create_tables(settings, protection="false")
    name = settings.table("embeddings")
    earlier = now() - timedelta(hours=1)
    async with aioboto3.Session().client("cloudwatch", endpoint_url=moto) as client:
        for metric, index, units in (
            ("ConsumedWriteCapacityUnits", None, 4e6),
            ("ConsumedWriteCapacityUnits", "ModelVersionIndex", 4e6),
            ("ConsumedReadCapacityUnits", "ModelVersionIndex", 8e6),
        ):
            dimensions = [{"Name": "TableName", "Value": name}]
            if index:
                dimensions.append({"Name": "GlobalSecondaryIndexName", "Value": index})
            point = {"MetricName": metric, "Dimensions": dimensions, "Value": units}
            await client.put_metric_data(
                Namespace="AWS/DynamoDB", MetricData=[{**point, "Timestamp": earlier}]
            )
    described = [table for table in await describe_tables(settings) if table.name == name]
    consumed = await read_consumption(settings, described)
    assert consumed == {name: Consumption(read_units=8e6, write_units=8e6)}
    status, out, error = await run_k9(settings, tmp_path, "tables", "describe")
    assert (status, error) == (0, "")
    assert re.search(rf"{name} .* on demand .* 182\.50$", out, re.MULTILINE)
    assert "$182.50 a month: storage, recovery and requests, prices of us-east-1 as of" in out


async def test_without_cloudwatch_the_cost_is_that_of_the_size(
    ministack: str, tmp_path: Path
) -> None:
    """And the output says that requests are not in it."""
    settings = settings_for(ministack)
    await create_tables(settings, protection="false")
    described = await describe_tables(settings)
    nowhere = msgspec.structs.replace(
        settings, aws=msgspec.structs.replace(settings.aws, endpoint_url="http://127.0.0.1:1")
    )
    reason = await read_consumption(nowhere, described)
    assert isinstance(reason, str)
    assert "could not connect" in reason.lower()
