"""What the metrics have of calls to AWS, against each emulator and a server that misbehaves."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from uuid import uuid4

import msgspec
import pytest
from prometheus_client import REGISTRY

from core.dynamo.client import Dynamo, open_dynamo
from core.dynamo.expressions import equals, expressions, key, missing
from core.errors import Busy, ConditionFailed, NotFound, Unavailable
from core.object_store import ObjectStore, open_object_store
from core.settings import Aws, Settings
from tests.scripted import CLOSE, HANG, ScriptedServer, answer


def counted(name: str, **labels: str) -> float:
    """The present value of a series."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@contextmanager
def grows(name: str, by: float | None = 1, /, **labels: str) -> Iterator[None]:
    """A series has grown at the end of the block; without `by`, by anything."""
    before = counted(name, **labels)
    yield
    grown = counted(name, **labels) - before
    assert grown > 0 if by is None else grown == by, (name, labels, grown)


def attempts(operation: str, table: str, outcome: str) -> dict[str, str]:
    """Labels of attempts at DynamoDB."""
    return {"service": "dynamodb", "operation": operation, "table": table, "outcome": outcome}


@pytest.fixture(scope="module")
async def dynamo(settings: Settings) -> AsyncIterator[Dynamo]:
    """The client, open for the module."""
    async with open_dynamo(settings) as client:
        yield client


@pytest.fixture(scope="module")
async def objects(settings: Settings) -> AsyncIterator[ObjectStore]:
    """The bucket."""
    async with open_object_store(settings) as store:
        yield store


async def test_a_call_counts_for_its_table(dynamo: Dynamo, settings: Settings) -> None:
    """An observation a call, an attempt each, and the units that were charged."""
    models, item = settings.table("models"), {"model_version": {"S": uuid4().hex}}
    seconds = {"service": "dynamodb", "operation": "PutItem", "table": "models"}
    with (
        grows("k9_aws_call_seconds_count", **seconds),
        grows("k9_aws_attempts_total", **attempts("PutItem", "models", "ok")),
        grows("k9_dynamodb_consumed_units_total", table="models", kind="write"),
    ):
        await dynamo.call("put_item", TableName=models, Item=item)
    with grows("k9_dynamodb_consumed_units_total", None, table="models", kind="read"):
        await dynamo.call("get_item", TableName=models, Key=item)
    query = {"IndexName": "ModelBuildsIndex", **expressions(key=equals("model_version", "m"))}
    with grows("k9_aws_attempts_total", **attempts("Query", "builds", "ok")):
        await dynamo.call("query", TableName=settings.table("builds"), **query)


async def test_batches_and_transactions_count_for_their_tables(
    dynamo: Dynamo, settings: Settings
) -> None:
    """By name where it is one, else as several."""
    models, users = settings.table("models"), settings.table("users")
    item = {"model_version": {"S": uuid4().hex}}
    with grows("k9_aws_attempts_total", **attempts("BatchWriteItem", "models", "ok")):
        await dynamo.call(
            "batch_write_item", RequestItems={models: [{"PutRequest": {"Item": item}}]}
        )
    puts = [
        {"Put": {"TableName": models, "Item": item}},
        {"Put": {"TableName": users, "Item": {"user_id": {"S": uuid4().hex}}}},
    ]
    with grows("k9_aws_attempts_total", **attempts("TransactWriteItems", "several", "ok")):
        await dynamo.call("transact_write_items", TransactItems=puts)


async def test_units_count_for_each_table_of_a_call() -> None:
    """As DynamoDB tells them: read and write apart where it does, else by the operation."""
    settings = Settings()
    reports, users = settings.table("reports"), settings.table("users")
    charged: list[dict[str, object]] = [
        {"TableName": reports, "CapacityUnits": 3.0, "WriteCapacityUnits": 3.0},
        {
            "TableName": users,
            "CapacityUnits": 2.5,
            "ReadCapacityUnits": 0.5,
            "WriteCapacityUnits": 2,
        },
        {"TableName": "a-table-of-others", "CapacityUnits": 7.0},
    ]
    server = ScriptedServer(answer(200, msgspec.json.encode({"ConsumedCapacity": charged})))
    async with server.listening() as url:
        aws = Aws(endpoint_url=url, read_timeout_s=20.0, deadline_s=20.0)
        async with open_dynamo(msgspec.structs.replace(settings, aws=aws)) as client:
            with (
                grows("k9_dynamodb_consumed_units_total", 3, table="reports", kind="write"),
                grows("k9_dynamodb_consumed_units_total", 0, table="reports", kind="read"),
                grows("k9_dynamodb_consumed_units_total", 2, table="users", kind="write"),
                grows("k9_dynamodb_consumed_units_total", 0.5, table="users", kind="read"),
                grows("k9_dynamodb_consumed_units_total", 7, table="other", kind="write"),
            ):
                await client.call("transact_write_items", TransactItems=[])


async def test_a_refusal_is_no_fault(dynamo: Dynamo, settings: Settings) -> None:
    """A condition that is not met, and an object that is not there, are answers."""
    models, item = settings.table("models"), {"model_version": {"S": uuid4().hex}}
    await dynamo.call("put_item", TableName=models, Item=item)
    condition = expressions(condition=missing("model_version"))
    with (
        grows("k9_aws_attempts_total", **attempts("PutItem", "models", "refused")),
        pytest.raises(ConditionFailed),
    ):
        await dynamo.call("put_item", TableName=models, Item=item, **condition)


async def test_objects_count_too(objects: ObjectStore) -> None:
    """Each operation apart, without a table."""
    name = f"objects/{uuid4().hex}"
    labels = {"service": "s3", "table": ""}
    with (
        grows("k9_aws_call_seconds_count", operation="PutObject", **labels),
        grows("k9_aws_attempts_total", operation="PutObject", outcome="ok", **labels),
        grows("k9_aws_attempts_total", operation="GetObject", outcome="ok", **labels),
        grows("k9_aws_attempts_total", operation="HeadObject", outcome="refused", **labels),
    ):
        await objects.put(name, b"hello")
        assert await objects.get_bytes(name, 10) == b"hello"
        with pytest.raises(NotFound):
            await objects.head(f"{name}/none")


def error(code: str, status: int = 400) -> bytes:
    """A reply of DynamoDB with an error."""
    body = msgspec.json.encode({"__type": f"com.amazonaws.dynamodb.v20120810#{code}"})
    return answer(status, body, headers="content-type: application/x-amz-json-1.0\r\n")


@pytest.mark.parametrize(
    ("reply", "outcome", "count"),
    [
        (error("ProvisionedThroughputExceededException"), "throttled", 3),
        (error("InternalServerError", 500), "failed", 3),
        (answer(200, b"{not json"), "failed", 3),
        (CLOSE, "unreachable", 3),
        (HANG, "unreachable", 1),
    ],
)
async def test_every_attempt_counts_as_what_came_of_it(
    reply: bytes, outcome: str, count: int
) -> None:
    """Those that botocore repeats by itself, and the one that the deadline ends."""
    server = ScriptedServer(reply)
    async with server.listening() as url:
        aws = Aws(endpoint_url=url, read_timeout_s=20.0, deadline_s=0.5 if reply == HANG else 20.0)
        settings = Settings(aws=aws)
        async with open_dynamo(settings) as client:
            models, row = settings.table("models"), key(model_version="m")
            with (
                grows("k9_aws_attempts_total", count, **attempts("GetItem", "models", outcome)),
                pytest.raises((Busy, Unavailable)),
            ):
                await client.call("get_item", TableName=models, Key=row)


async def test_items_that_were_left_out_are_counted() -> None:
    """DynamoDB took the call, and not all of its items: no error says so."""
    settings = Settings()
    models = settings.table("models")
    item = {"model_version": {"S": "m"}}
    left = {"UnprocessedItems": {models: [{"PutRequest": {"Item": item}}] * 2}}
    server = ScriptedServer(answer(200, msgspec.json.encode(left)))
    async with server.listening() as url:
        aws = Aws(endpoint_url=url, read_timeout_s=20.0, deadline_s=20.0)
        async with open_dynamo(msgspec.structs.replace(settings, aws=aws)) as client:
            with grows("k9_dynamodb_unprocessed_items_total", 2, table="models"):
                await client.call(
                    "batch_write_item", RequestItems={models: [{"PutRequest": {"Item": item}}] * 3}
                )
