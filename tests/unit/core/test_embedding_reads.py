"""Reading rows by their ids: what DynamoDB left out is asked for again."""

from typing import Any

import pytest

from core.dynamo.client import Dynamo
from core.dynamo.wire import AttributeValue
from core.errors import Unavailable
from core.repositories.embedding_reads import read_rows


class Stingy(Dynamo):
    """Gives no more than some rows a call."""

    def __init__(self, rows: int) -> None:
        super().__init__(None, deadline_s=1)
        self.rows = rows
        self.asked: list[int] = []

    async def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """The first few keys."""
        assert operation == "batch_get_item"
        wanted = parameters["RequestItems"]["t"]
        assert wanted["ConsistentRead"] is True
        self.asked.append(len(wanted["Keys"]))
        given, left = wanted["Keys"][: self.rows], wanted["Keys"][self.rows :]
        items = [
            {
                "product_id": AttributeValue(S=key["product_id"]["S"]),
                "model_version": AttributeValue(S="m"),
                "updated_at": AttributeValue(S="now"),
            }
            for key in given
        ]
        reply: dict[str, Any] = {"Responses": {"t": items}}
        if left:
            reply["UnprocessedKeys"] = {"t": {"Keys": left}}
        return reply


async def test_unprocessed_keys_are_asked_for_again() -> None:
    """Until all are there, and never twice."""
    dynamo = Stingy(40)
    ids = [f"p{number}" for number in range(250)]
    found = await read_rows(dynamo, "t", "m", ids)
    assert [row.product_id for row in found] == ids
    assert sorted(dynamo.asked) == sorted([100, 60, 20, 100, 60, 20, 50, 10])


async def test_a_table_that_gives_nothing_is_given_up() -> None:
    """After a bounded number of tries."""
    dynamo = Stingy(0)
    with pytest.raises(Unavailable):
        await read_rows(dynamo, "t", "m", ["p"])
    assert len(dynamo.asked) == 6
