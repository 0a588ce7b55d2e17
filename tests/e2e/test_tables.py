"""The one template, on both emulators."""

import re

import aioboto3
import pytest

from core.dynamo import tables
from core.dynamo.client import open_dynamo
from core.errors import TableMissing
from core.settings import Settings
from deploy.aws.data_stack import create_tables
from deploy.aws.tables import describe_tables, read_tag, write_tag
from deploy.data.bulk import count_items
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
    }
    assert {index for table in described.values() for index in table.indexes} == {
        "UserReportsIndex",
        "ModelVersionIndex",
        "ModelBuildsIndex",
        "OpenBuildsIndex",
    }
    assert all(table.recovery for table in described.values())
    assert all(table.deletion_protection for table in described.values())  # not `dev`
    assert described[f"k9-idempotency-{emulator.environment}"].ttl_attribute == "expires_at"


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
