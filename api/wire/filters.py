"""Filters as they come over the wire → filters that are valid."""

from collections.abc import Collection
from typing import Any, Final

import msgspec
from msgspec import Raw

from api.wire.decoding import BodyDecoder
from api.wire.fields import ATTRIBUTE
from core.attributes.filters import Filter, parse_filter
from core.attributes.values import NAME
from core.errors import FieldError, Invalid
from core.limits import (
    FILTER_BYTES_MAX,
    FILTER_CONDITIONS_MAX,
    FILTER_LEVELS_MAX,
    FILTER_VALUES_MAX,
)

_SCALAR: Final[dict[str, Any]] = {"oneOf": ATTRIBUTE["oneOf"][:3]}
_VALUES: Final[dict[str, Any]] = {"type": "array", "items": _SCALAR, "maxItems": FILTER_VALUES_MAX}
_NUMBER: Final[dict[str, Any]] = {"type": "number"}
_OPERATORS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "$eq": _SCALAR,
        "$ne": _SCALAR,
        "$gt": _NUMBER,
        "$gte": _NUMBER,
        "$lt": _NUMBER,
        "$lte": _NUMBER,
        "$in": _VALUES,
        "$nin": _VALUES,
        "$exists": {"type": "boolean"},
    },
    "additionalProperties": False,
    "minProperties": 1,
}
_CONDITION: Final[dict[str, Any]] = {"oneOf": [*_SCALAR["oneOf"], _OPERATORS]}
_FLAT: Final[dict[str, Any]] = {
    "type": "object",
    "propertyNames": {"pattern": f"^{NAME}$"},
    "additionalProperties": _CONDITION,
    "maxProperties": FILTER_CONDITIONS_MAX,
}
_FILTERS: Final[dict[str, Any]] = {
    "type": "array",
    "items": _FLAT,
    "minItems": 1,
    "maxItems": FILTER_CONDITIONS_MAX,
}
FILTER: Final[dict[str, Any]] = {
    "type": "object",
    "propertyNames": {"pattern": rf"^({NAME}|\$and|\$or|\$not)$"},
    "properties": {"$and": _FILTERS, "$or": _FILTERS, "$not": _FLAT},
    "additionalProperties": _CONDITION,
    "maxProperties": FILTER_CONDITIONS_MAX,
    "description": (
        "Attributes that a product must have. A bare value is `$eq`; names and operators side by "
        "side must all match. On a list `$eq` and `$in` match where one of its strings does. "
        "`$ne`, `$nin` and `$not`, which stands before operators too, are the exact complements: "
        "a product without the attribute matches them. Types never mix. `$and`, `$or` and `$not` "
        f"nest to {FILTER_LEVELS_MAX} levels; {FILTER_CONDITIONS_MAX} conditions and "
        f"{FILTER_VALUES_MAX} values in all."
    ),
    "example": {"brand": "acme", "price": {"$gte": 10, "$lt": 50}},
}
"""JSON Schema of a filter of one level, in which most are written; `parse_filter` checks it."""

_value: Final[BodyDecoder[Any]] = BodyDecoder[Any](Any)


def sent_filter(wire: Raw, *, msgpack: bool, unavailable: Collection[str]) -> Filter:
    """The filter of a body.

    Args:
        wire: A value, still encoded.
        msgpack: what it is encoded in, if not in JSON.
        unavailable: attributes that it may not have a condition on.

    Raises:
        Unreadable: it cannot be read.
        Invalid: it is no valid filter; the errors have the place of each mistake.
    """
    size = len(memoryview(wire))
    if size > FILTER_BYTES_MAX:
        raise Invalid.of(FieldError("filter", f"has {size} bytes, the most is {FILTER_BYTES_MAX}"))
    value = _value.decode(wire, msgpack=msgpack, at="filter")
    return parse_filter(value, unavailable=unavailable)


def filter_text(text: str, unavailable: Collection[str]) -> Filter:
    """The filter that a parameter of the query has as JSON, without conditions on `unavailable`.

    Raises:
        Invalid: it is no JSON, or no valid filter.
    """
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        why = "nests too deep" if isinstance(error, RecursionError) else str(error)
        raise Invalid.of(FieldError("filter", f"is no JSON: {why}")) from None
    return parse_filter(value, unavailable=unavailable)
