"""The client against each emulator: what every repository takes for granted."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from core.dynamo.client import Dynamo, open_dynamo
from core.dynamo.expressions import (
    Update,
    above,
    below,
    differs,
    equals,
    exists,
    expressions,
    key,
    missing,
    one_of,
)
from core.dynamo.items import attribute_of
from core.dynamo.wire import AttributeValue, RequestItem
from core.errors import ConditionFailed, TableMissing, TransactionFailed
from core.settings import Settings


@pytest.fixture(scope="module")
async def dynamo(settings: Settings) -> AsyncIterator[Dynamo]:
    """The client, open for the module."""
    async with open_dynamo(settings) as client:
        yield client


@pytest.fixture
def models(settings: Settings) -> str:
    """The name of a table with one key attribute, `model_version`."""
    return settings.table("models")


@pytest.fixture
def name() -> str:
    """A key that no other test has."""
    return uuid4().hex


def row(name: str, **values: object) -> RequestItem:
    """An item of the models table."""
    return {"model_version": {"S": name}} | {n: attribute_of(v) for n, v in values.items()}


class TestItems:
    """One row: put, get, update, delete."""

    async def test_every_type_comes_back(self, dynamo: Dynamo, models: str, name: str) -> None:
        """What is put is what is got, nested and empty values too."""
        item: RequestItem = {
            "model_version": {"S": name},
            "text": {"S": "é\u2028\U0001f600"},
            "number": {"N": "-1.5"},
            "binary": {"B": bytes(range(256))},
            "yes": {"BOOL": True},
            "no": {"BOOL": False},
            "nothing": {"NULL": True},
            "map": {"M": {"a": {"L": [{"N": "1"}, {"M": {}}]}, "b": {"B": b"x"}}},
            "list": {"L": []},
            "texts": {"SS": ["a"]},
            "numbers": {"NS": ["7"]},
            "binaries": {"BS": [b"\x00\xff"]},
        }
        await dynamo.call("put_item", TableName=models, Item=item)
        reply = await dynamo.call("get_item", TableName=models, Key=key(model_version=name))
        assert reply["Item"] == {
            "model_version": AttributeValue(S=name),
            "text": AttributeValue(S="é\u2028\U0001f600"),
            "number": AttributeValue(N="-1.5"),
            "binary": AttributeValue(B=bytes(range(256))),
            "yes": AttributeValue(BOOL=True),
            "no": AttributeValue(BOOL=False),
            "nothing": AttributeValue(NULL=True),
            "map": AttributeValue(
                M={
                    "a": AttributeValue(L=[AttributeValue(N="1"), AttributeValue(M={})]),
                    "b": AttributeValue(B=b"x"),
                }
            ),
            "list": AttributeValue(L=[]),
            "texts": AttributeValue(SS=["a"]),
            "numbers": AttributeValue(NS=["7"]),
            "binaries": AttributeValue(BS=[b"\x00\xff"]),
        }

    async def test_a_row_that_is_not_there(self, dynamo: Dynamo, models: str, name: str) -> None:
        """A reply about no row has no Item, and has its metadata."""
        reply = await dynamo.call("get_item", TableName=models, Key=key(model_version=name))
        assert "Item" not in reply
        assert reply["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert reply["ResponseMetadata"]["RetryAttempts"] == 0
        assert reply["ResponseMetadata"]["RequestId"]

    async def test_a_row_as_it_came_can_be_put_again(
        self, dynamo: Dynamo, models: str, name: str
    ) -> None:
        """Values off the wire are taken in requests, nested ones too."""
        nested = {"L": [{"M": {"a": {"N": "1"}}}, {"S": "b"}]}
        item = row(name, vector=b"\x01\x02") | {"nested": nested}
        await dynamo.call("put_item", TableName=models, Item=item)
        reply = await dynamo.call("get_item", TableName=models, Key=key(model_version=name))
        copy = reply["Item"] | {"model_version": {"S": name + "2"}}
        await dynamo.call("put_item", TableName=models, Item=copy)
        second = await dynamo.call("get_item", TableName=models, Key=key(model_version=name + "2"))
        assert second["Item"]["vector"].B == b"\x01\x02"
        assert second["Item"]["nested"] == reply["Item"]["nested"]

    async def test_an_update_returns_what_it_was_asked_for(
        self, dynamo: Dynamo, models: str, name: str
    ) -> None:
        """Set, set if missing, add and remove, in one expression, over reserved words."""
        await dynamo.call("put_item", TableName=models, Item=row(name, count=1, old="x", kept="a"))
        update = Update(
            set={"status": "running", "size": None},
            set_if_missing={"kept": "b", "new": "c"},
            add={"count": 2},
            remove=("old",),
        )
        reply = await dynamo.call(
            "update_item",
            TableName=models,
            Key=key(model_version=name),
            ReturnValues="ALL_NEW",
            **expressions(update=update, condition=exists("model_version")),
        )
        assert reply["Attributes"] == {
            "model_version": AttributeValue(S=name),
            "status": AttributeValue(S="running"),
            "kept": AttributeValue(S="a"),
            "new": AttributeValue(S="c"),
            "count": AttributeValue(N="3"),
        }

    async def test_a_delete_returns_the_row(self, dynamo: Dynamo, models: str, name: str) -> None:
        """ALL_OLD of a delete is the row as it was."""
        await dynamo.call("put_item", TableName=models, Item=row(name))
        reply = await dynamo.call(
            "delete_item", TableName=models, Key=key(model_version=name), ReturnValues="ALL_OLD"
        )
        assert reply["Attributes"] == {"model_version": AttributeValue(S=name)}

    async def test_a_table_that_is_missing(self, dynamo: Dynamo) -> None:
        """The error names the table and the command that makes it."""
        with pytest.raises(TableMissing, match=r"table k9-nothing: `k9 tables create`"):
            await dynamo.call("get_item", TableName="k9-nothing", Key=key(id="a"))


class TestConditions:
    """Conditional writes."""

    async def test_a_condition_that_fails_shows_the_row(
        self, dynamo: Dynamo, models: str, name: str
    ) -> None:
        """With ALL_OLD, the error holds the row in the same form as a read."""
        await dynamo.call("put_item", TableName=models, Item=row(name, vector=b"\x00\xff"))
        with pytest.raises(ConditionFailed) as caught:
            await dynamo.call(
                "put_item",
                TableName=models,
                Item=row(name),
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **expressions(condition=missing("model_version")),
            )
        assert caught.value.item == {
            "model_version": AttributeValue(S=name),
            "vector": AttributeValue(B=b"\x00\xff"),
        }

    async def test_a_condition_that_fails_without_the_row(
        self, dynamo: Dynamo, models: str, name: str
    ) -> None:
        """Not asked for, or not there, the row is None."""
        with pytest.raises(ConditionFailed) as caught:
            await dynamo.call(
                "update_item",
                TableName=models,
                Key=key(model_version=name),
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **expressions(update=Update(set={"a": 1}), condition=exists("model_version")),
            )
        assert caught.value.item is None

    async def test_every_condition_means_what_it_says(
        self, dynamo: Dynamo, models: str, name: str
    ) -> None:
        """Each holds where it should, and not where it should not."""
        await dynamo.call("put_item", TableName=models, Item=row(name, n=5, s="abc"))
        for met, unmet in (
            (exists("n"), exists("x")),
            (missing("x"), missing("n")),
            (equals("n", 5), equals("n", 6)),
            (differs("n", 6), differs("n", 5)),
            (below("n", 6), below("n", 5)),
            (above("n", 4), above("n", 5)),
            (one_of("s", ("x", "abc")), one_of("s", ("x", "ab"))),
            (equals("n", 5) & equals("s", "abc"), equals("n", 5) & equals("s", "x")),
            (equals("n", 6) | equals("s", "abc"), equals("n", 6) | equals("s", "x")),
        ):
            seen = Update(set={"seen": True})
            where: dict[str, Any] = {"TableName": models, "Key": key(model_version=name)}
            await dynamo.call("update_item", **where, **expressions(update=seen, condition=met))
            with pytest.raises(ConditionFailed):
                await dynamo.call(
                    "update_item", **where, **expressions(update=seen, condition=unmet)
                )

    async def test_of_many_writers_one_wins(self, dynamo: Dynamo, models: str, name: str) -> None:
        """Sixteen conditional creations side by side: one holds, fifteen fail."""

        async def create(number: int) -> bool:
            try:
                await dynamo.call(
                    "put_item",
                    TableName=models,
                    Item=row(name, n=number),
                    **expressions(condition=missing("model_version")),
                )
            except ConditionFailed:
                return False
            return True

        assert sum(await asyncio.gather(*map(create, range(16)))) == 1


class TestTransactions:
    """All or nothing."""

    async def test_all_of_it_is_written(self, dynamo: Dynamo, models: str, name: str) -> None:
        """A transaction of a put, an update and a check writes both rows."""
        await dynamo.call("put_item", TableName=models, Item=row(name + "u", n=1))
        update = expressions(update=Update(add={"n": 1}), condition=equals("n", 1))
        await dynamo.call(
            "transact_write_items",
            TransactItems=[
                {"Put": {"TableName": models, "Item": row(name)}},
                {"Update": {"TableName": models, "Key": key(model_version=name + "u"), **update}},
            ],
        )
        first, second = [
            await dynamo.call("get_item", TableName=models, Key=key(model_version=name + end))
            for end in ("", "u")
        ]
        assert first["Item"] == {"model_version": AttributeValue(S=name)}
        assert second["Item"]["n"] == AttributeValue(N="2")

    async def test_a_cancelled_one_says_why(self, dynamo: Dynamo, models: str, name: str) -> None:
        """One reason an operation, the row where asked for, and nothing is written."""
        await dynamo.call("put_item", TableName=models, Item=row(name))
        with pytest.raises(TransactionFailed) as caught:
            await dynamo.call(
                "transact_write_items",
                TransactItems=[
                    {"Put": {"TableName": models, "Item": row(name + "2")}},
                    {
                        "Put": {
                            "TableName": models,
                            "Item": row(name),
                            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
                            **expressions(condition=missing("model_version")),
                        }
                    },
                ],
            )
        assert caught.value.reasons == ("None", "ConditionalCheckFailed")
        assert caught.value.items == (None, {"model_version": AttributeValue(S=name)})
        reply = await dynamo.call("get_item", TableName=models, Key=key(model_version=name + "2"))
        assert "Item" not in reply
