"""Expressions: names and values are never part of their text."""

import hypothesis.strategies as st
from hypothesis import given

from core.dynamo.expressions import Update, above, equals, exists, expressions, key, missing, one_of
from core.dynamo.wire import AttributeValue


def test_all_expressions_of_a_call_share_their_aliases() -> None:
    """One name has one alias, each value its own, over all expressions of the call."""
    assert expressions(
        key=equals("model_shard", "m#0") & above("updated_at", "2026"),
        filtered=missing("deleted_at"),
        projection=("product_id", "updated_at"),
    ) == {
        "KeyConditionExpression": "(#n0 = :v0 AND #n1 > :v1)",
        "FilterExpression": "attribute_not_exists(#n2)",
        "ProjectionExpression": "#n3, #n1",
        "ExpressionAttributeNames": {
            "#n0": "model_shard",
            "#n1": "updated_at",
            "#n2": "deleted_at",
            "#n3": "product_id",
        },
        "ExpressionAttributeValues": {":v0": {"S": "m#0"}, ":v1": {"S": "2026"}},
    }


def test_an_update_has_each_clause_once() -> None:
    """SET, ADD and REMOVE, each with all its parts; a value of None is a removal."""
    update = Update(
        set={"status": "x", "error": None},
        set_if_missing={"created_at": "now"},
        add={"fence": 1},
        remove=("open",),
    )
    parameters = expressions(update=update, condition=exists("id"))
    assert parameters["UpdateExpression"] == (
        "SET #n1 = :v0, #n2 = if_not_exists(#n2, :v1) ADD #n3 :v2 REMOVE #n4, #n5"
    )
    assert parameters["ConditionExpression"] == "attribute_exists(#n0)"
    assert parameters["ExpressionAttributeNames"] == {
        "#n0": "id",
        "#n1": "status",
        "#n2": "created_at",
        "#n3": "fence",
        "#n4": "open",
        "#n5": "error",
    }


def test_nothing_asked_is_nothing_sent() -> None:
    """DynamoDB refuses empty expressions and unused aliases, so none is sent."""
    assert expressions() == {}
    assert expressions(update=Update()) == {}


def test_a_condition_can_be_used_again() -> None:
    """A condition holds no state of the call it was used in."""
    condition = one_of("a", (1, 2)) | above("b", 1)
    assert expressions(condition=condition) == expressions(condition=condition)


def test_values_off_the_wire_are_taken() -> None:
    """A value as it was read can be compared with."""
    parameters = expressions(condition=equals("v", AttributeValue(B=b"\x00")))
    assert parameters["ExpressionAttributeValues"] == {":v0": {"B": b"\x00"}}


@given(st.text(min_size=1), st.text())
def test_nothing_of_the_caller_is_in_the_text(name: str, value: str) -> None:
    """Whatever a name or value is, the text is made of aliases alone."""
    parameters = expressions(condition=equals(name, value))
    assert parameters["ConditionExpression"] == "#n0 = :v0"
    assert parameters["ExpressionAttributeNames"] == {"#n0": name}
    assert parameters["ExpressionAttributeValues"] == {":v0": {"S": value}}


def test_a_key() -> None:
    """A key's attributes are strings, in the request's form."""
    assert key(product_id="p", model_version="m") == {
        "product_id": {"S": "p"},
        "model_version": {"S": "m"},
    }
