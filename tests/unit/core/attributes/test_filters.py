from typing import Any

import pytest

from core.attributes.filters import Row, parse_filter
from core.errors import Invalid
from core.limits import FILTER_CONDITIONS_MAX, FILTER_LEVELS_MAX, FILTER_VALUES_MAX

ROW: Row = {"brand": "acme", "price": 20, "stock": True, "tags": ["new", "red"], "weight": 0.5}


def nested(levels: int) -> Any:
    """A filter of so many levels."""
    value: Any = {"brand": "acme"}
    for level in range(levels - 1):
        value = {"$and": [value]} if level % 2 else {"$not": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"brand": "acme"},
        {"brand": {"$eq": "acme"}, "price": {"$gte": 20, "$lt": 20.5}},
        {"price": 20.0},
        {"price": {"$gt": 19, "$lte": 20}},
        {"price": {"$gt": -1e308, "$lt": 10**30}},
        {"price": {"$in": ["20", 20]}},
        {"stock": True},
        {"stock": {"$ne": 1}},
        {"price": {"$ne": True}},
        {"price": {"$ne": "20"}},
        {"tags": "red"},
        {"tags": {"$in": ["blue", "new"]}},
        {"tags": {"$nin": ["blue"]}},
        {"tags": {"$nin": []}},
        {"colour": {"$ne": "red"}},
        {"colour": {"$nin": ["red"]}},
        {"colour": {"$exists": False}, "brand": {"$exists": True}},
        {"$not": {"colour": "red"}},
        {"colour": {"$not": {"$gt": 3}}},
        {"$or": [{"brand": "other"}, {"price": 20, "stock": True}]},
        {"$and": [{"brand": "acme"}, {"$or": [{"stock": False}, {"weight": 0.5}]}]},
    ],
)
def test_a_filter_that_a_row_matches(value: Any) -> None:
    """Each operator, bare values, lists, and rows without the attribute."""
    assert parse_filter(value).matches(ROW)
    assert not parse_filter({"$not": value}).matches(ROW)


def test_conditions_on_what_is_not_available_are_named_by_place() -> None:
    """At any depth, each of them; what is wrong beside it too, and other names may be used."""
    value = {
        "price": 1,
        "cost": {"$not": {"$gt": 3}},
        "$or": [{"brand": "a"}, {"$not": {"cost": {"$exists": True}}}],
        "$and": [{"brand": {"$gt": "a"}}],
    }
    with pytest.raises(Invalid) as refused:
        parse_filter(value, unavailable=("cost", "margin"))
    assert [error.field for error in refused.value.errors] == [
        "filter.cost",
        "filter.$or[1].$not.cost",
        "filter.$and[0].brand.$gt",
    ]
    assert parse_filter({"price": 1}, unavailable=("cost",)) == parse_filter({"price": 1})


@pytest.mark.parametrize(
    "value",
    [
        {"stock": 1},
        {"price": True},
        {"price": "20"},
        {"price": {"$gt": 20}},
        {"price": {"$lt": 20}},
        {"brand": {"$gt": 0}},
        {"stock": {"$gte": 0}},
        {"tags": {"$gte": 0}},
        {"tags": "re"},
        {"tags": {"$ne": "red"}},
        {"tags": {"$nin": ["red", "blue"]}},
        {"tags": {"$in": []}},
        {"colour": "red"},
        {"colour": {"$not": {"$not": {"$eq": "red"}}}},
        {"$or": [{"brand": "other"}, {"price": 20, "stock": False}]},
    ],
)
def test_a_filter_that_a_row_does_not_match(value: Any) -> None:
    """Types do not mix, and a list matches by whole strings."""
    assert not parse_filter(value).matches(ROW)


@pytest.mark.parametrize(
    ("value", "place", "part"),
    [
        (None, "filter", "takes an object, not null"),
        ([], "filter", "takes an object, not a list"),
        ({"$nor": []}, "filter", "$nor"),
        ({"no space": 1}, "filter", "the name 'no space'"),
        ({"a" * 65: 1}, "filter", "…"),
        ({"": 1}, "filter", "1 to 64"),
        ({7: 1}, "filter", "the name '7'"),
        ({"a": None}, "filter.a", "$exists"),
        ({"a": [1]}, "filter.a", "$in"),
        ({"a": {}}, "filter.a", "has no operator"),
        ({"a": {"$regex": "x"}}, "filter.a", "'$regex', which is no operator"),
        ({"a": {"$and": []}}, "filter.a", "'$and', which is no operator"),
        ({"a": {"$gt": "5"}}, "filter.a.$gt", "takes a number, not a string"),
        ({"a": {"$gt": True}}, "filter.a.$gt", "not a boolean"),
        ({"a": {"$lte": None}}, "filter.a.$lte", "not null"),
        ({"a": {"$eq": {"b": 1}}}, "filter.a.$eq", "not an object"),
        ({"a": {"$in": "x"}}, "filter.a.$in", "takes a list"),
        ({"a": {"$in": ["x", None]}}, "filter.a.$in[1]", "null"),
        ({"a": {"$exists": 1}}, "filter.a.$exists", "true or false"),
        ({"a": {"$not": 3}}, "filter.a.$not", "an object of operators"),
        ({"a": 10**400}, "filter.a", "float64"),
        ({"a": {"$gt": float("nan")}}, "filter.a.$gt", "float64"),
        ({"a": "x" * 257}, "filter.a", "257 characters"),
        ({"a": "\ud800"}, "filter.a", "Unicode"),
        ({"a": b"x"}, "filter.a", "another type"),
        ({"$and": {}}, "filter.$and", "at least one filter"),
        ({"$or": []}, "filter.$or", "at least one filter"),
        ({"$or": [{"a": 1}, 5]}, "filter.$or[1]", "not a number"),
        ({"$or": [{"a": 1}, {"b": {"$in": [1, []]}}]}, "filter.$or[1].b.$in[1]", "a list"),
        ({"$not": {"a": {"$foo": 1}}}, "filter.$not.a", "$foo"),
    ],
)
def test_a_mistake_is_named_at_its_place(value: Any, place: str, part: str) -> None:
    """A caller is told where the filter is wrong, and what it takes there."""
    with pytest.raises(Invalid) as caught:
        parse_filter(value)
    (error,) = caught.value.errors
    assert error.field == place
    assert part in error.message
    assert place in str(caught.value)


def test_every_mistake_is_named() -> None:
    """One request shows all that is wrong."""
    with pytest.raises(Invalid) as caught:
        parse_filter({"a": None, "b": {"$gt": "x", "$lt": "y"}, "$or": [{"c": []}]}, "query.filter")
    assert [error.field for error in caught.value.errors] == [
        "query.filter.a",
        "query.filter.b.$gt",
        "query.filter.b.$lt",
        "query.filter.$or[0].c",
    ]


def deep_operators(levels: int) -> Any:
    """The same, by complements within one attribute."""
    value: Any = {"$eq": 1}
    for _ in range(levels - 1):
        value = {"$not": value}
    return {"a": value}


@pytest.mark.parametrize(
    ("good", "bad", "part"),
    [
        (nested(FILTER_LEVELS_MAX), nested(FILTER_LEVELS_MAX + 1), "16 levels"),
        (deep_operators(FILTER_LEVELS_MAX), deep_operators(FILTER_LEVELS_MAX + 1), "16 levels"),
        (nested(FILTER_LEVELS_MAX), nested(100_000), "16 levels"),
        (
            {"$or": [{"a": 1}] * FILTER_CONDITIONS_MAX},
            {"$or": [{"a": 1}] * FILTER_CONDITIONS_MAX + [{"b": {"$exists": True}}]},
            "up to 256",
        ),
        (
            {"$and": [{}] * FILTER_CONDITIONS_MAX},
            {"$and": [{}] * (FILTER_CONDITIONS_MAX + 1)},
            "up to 256",
        ),
        (
            {"a": {"$in": list(range(FILTER_VALUES_MAX))}},
            {"a": {"$in": list(range(FILTER_VALUES_MAX))}, "b": 1},
            "up to 1000",
        ),
    ],
)
def test_the_limits_of_a_filter(good: Any, bad: Any, part: str) -> None:
    """A filter at a limit is parsed, and one beyond is refused before the rest is looked at."""
    parse_filter(good)
    with pytest.raises(Invalid) as caught:
        parse_filter(bad)
    assert len(caught.value.errors) == 1
    assert part in caught.value.errors[0].message


@pytest.mark.parametrize(
    "value",
    [
        {f"name-{i} ": None for i in range(5000)},
        {"$and": [5] * 5000},
        {"a": {f"$op{i}": 1 for i in range(5000)}},
        {"a": {"$in": [None] * 5000}},
        {"$or": [{"$and": 1}] * 5000},
    ],
)
def test_a_filter_full_of_mistakes_is_refused_early(value: Any) -> None:
    """The errors of one answer are bounded by the limits of a filter."""
    with pytest.raises(Invalid) as caught:
        parse_filter(value)
    assert len(caught.value.errors) <= FILTER_VALUES_MAX + 2
    assert "up to" in caught.value.errors[-1].message
