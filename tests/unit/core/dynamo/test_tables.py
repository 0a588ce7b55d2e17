"""Tables: what the code names is what the template makes."""

from typing import Any

import pytest

from core.dynamo import tables
from core.dynamo.tables import Key, Table, model_shard, shard_of
from tests.templates import read_template


def template() -> dict[str, Any]:
    """The template of the tables, by table."""
    return {
        name.removesuffix("Table").lower(): resource["Properties"]
        for name, resource in read_template("data")["Resources"].items()
        if resource["Type"] == "AWS::DynamoDB::Table"
    }


def schema(properties: dict[str, Any]) -> Key:
    """The key of a table or index in the template."""
    kinds = {part["KeyType"]: part["AttributeName"] for part in properties["KeySchema"]}
    return Key(kinds["HASH"], kinds.get("RANGE"))


def test_there_are_the_same_tables() -> None:
    """Seven of them, in both."""
    assert {table.name for table in tables.ALL} == template().keys()


@pytest.mark.parametrize("table", tables.ALL, ids=lambda table: table.name)
def test_a_table_is_as_the_template_makes_it(table: Table) -> None:
    """Its key, its indexes with their keys, its time to live."""
    properties = template()[table.name]
    assert schema(properties) == table.key
    indexes = {i["IndexName"]: schema(i) for i in properties.get("GlobalSecondaryIndexes", ())}
    assert indexes == table.indexes
    ttl = properties.get("TimeToLiveSpecification", {}).get("AttributeName")
    assert ttl == table.ttl
    types = {a["AttributeName"]: a["AttributeType"] for a in properties["AttributeDefinitions"]}
    used = {a for key in (table.key, *table.indexes.values()) for a in key.attributes}
    assert types == dict.fromkeys(used, "S")


def test_shards_never_move() -> None:
    """Rows lie by it: these figures are for ever."""
    assert [shard_of(text, 8) for text in ("pandas", "numpy", "a/b", "é", "")] == [3, 2, 4, 6, 0]
    assert model_shard("minilm-l6-v2", 3) == "minilm-l6-v2#3"
