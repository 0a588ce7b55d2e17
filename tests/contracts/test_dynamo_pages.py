"""The client against each emulator, many rows a call: batches, pages and indexes."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from core.dynamo.client import Dynamo, open_dynamo
from core.dynamo.expressions import Update, above, equals, expressions, key
from core.dynamo.tables import MODEL_SHARD, MODEL_VERSION_INDEX, OPEN, OPEN_BUILDS_INDEX
from core.settings import Settings


@pytest.fixture(scope="module")
async def dynamo(settings: Settings) -> AsyncIterator[Dynamo]:
    """The client, open for the module."""
    async with open_dynamo(settings) as client:
        yield client


@pytest.fixture
def embeddings(settings: Settings) -> str:
    """The name of a table with two key attributes and an index."""
    return settings.table("embeddings")


@pytest.fixture
def name() -> str:
    """A key that no other test has."""
    return uuid4().hex


class TestBatches:
    """Many rows a call."""

    async def test_rows_are_written_and_read(
        self, dynamo: Dynamo, embeddings: str, name: str
    ) -> None:
        """25 rows go in one call, come back in one, and are deleted in one."""
        keys = [key(product_id=f"{name}/{n}", model_version="m") for n in range(25)]
        puts = [{"PutRequest": {"Item": k | {"vector": {"B": b"\x00" * 1536}}}} for k in keys]
        reply = await dynamo.call("batch_write_item", RequestItems={embeddings: puts})
        assert not reply["UnprocessedItems"]
        reply = await dynamo.call("batch_get_item", RequestItems={embeddings: {"Keys": keys}})
        assert not reply["UnprocessedKeys"]
        assert {item["product_id"].S for item in reply["Responses"][embeddings]} == {
            f"{name}/{n}" for n in range(25)
        }
        deletes = [{"DeleteRequest": {"Key": k}} for k in keys]
        await dynamo.call("batch_write_item", RequestItems={embeddings: deletes})
        reply = await dynamo.call("batch_get_item", RequestItems={embeddings: {"Keys": keys}})
        assert reply["Responses"].get(embeddings, []) == []


class TestQueries:
    """Pages."""

    async def test_an_index_is_read_in_pages(
        self, dynamo: Dynamo, embeddings: str, name: str
    ) -> None:
        """A LastEvaluatedKey, as it came, begins the next page; order is the sort key's."""
        shard = f"{name}#0"
        for n in range(5):
            item = key(
                product_id=f"{name}{n}", model_version="m", model_shard=shard, updated_at=str(n)
            )
            await dynamo.call("put_item", TableName=embeddings, Item=item)
        seen: list[str] = []
        start: dict[str, Any] = {}
        while True:
            page = await dynamo.call(
                "query",
                TableName=embeddings,
                IndexName=MODEL_VERSION_INDEX,
                Limit=2,
                **start,
                **expressions(
                    key=equals(MODEL_SHARD, shard) & above("updated_at", "0"),
                    projection=("product_id",),
                ),
            )
            seen += [item["product_id"].S for item in page["Items"]]
            assert all(item.keys() == {"product_id"} for item in page["Items"])
            assert page["Count"] == len(page["Items"])
            if "LastEvaluatedKey" not in page:
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
        assert seen == [f"{name}{n}" for n in range(1, 5)]

    async def test_an_empty_page(self, dynamo: Dynamo, embeddings: str, name: str) -> None:
        """A partition with nothing in it is a page of no items, and no next."""
        page = await dynamo.call(
            "query",
            TableName=embeddings,
            IndexName=MODEL_VERSION_INDEX,
            **expressions(key=equals(MODEL_SHARD, name)),
        )
        assert page["Items"] == []
        assert page["Count"] == 0
        assert "LastEvaluatedKey" not in page

    async def test_a_sparse_index_forgets(
        self, dynamo: Dynamo, settings: Settings, name: str
    ) -> None:
        """A build leaves OpenBuildsIndex when its attribute is removed."""
        builds = settings.table("builds")
        item = key(build_id=name, model_version="m", requested_at="1", open=name)
        await dynamo.call("put_item", TableName=builds, Item=item)

        async def count() -> int:
            page = await dynamo.call(
                "query",
                TableName=builds,
                IndexName=OPEN_BUILDS_INDEX,
                **expressions(key=equals(OPEN, name)),
            )
            return int(page["Count"])

        assert await count() == 1
        await dynamo.call(
            "update_item",
            TableName=builds,
            Key=key(build_id=name),
            **expressions(update=Update(remove=(OPEN,))),
        )
        assert await count() == 0

    async def test_a_page_ends_at_a_megabyte(
        self, dynamo: Dynamo, embeddings: str, name: str
    ) -> None:
        """A scan of more than 1 MB comes in pages, each row once."""
        rows = [
            key(product_id=f"{name}{n}", model_version=name) | {"vector": {"B": bytes(100_000)}}
            for n in range(15)
        ]
        for item in rows:
            await dynamo.call("put_item", TableName=embeddings, Item=item)
        seen: list[str] = []
        start: dict[str, Any] = {}
        pages = 0
        while True:
            page = await dynamo.call(
                "scan",
                TableName=embeddings,
                **start,
                **expressions(filtered=equals("model_version", name)),
            )
            pages += 1
            seen += [item["product_id"].S for item in page["Items"]]
            if "LastEvaluatedKey" not in page:
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
        assert pages > 1
        assert sorted(seen) == sorted(f"{name}{n}" for n in range(15))
