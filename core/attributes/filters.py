"""Filters on attributes: from the JSON of a request to a small tree, and its answer for one row.

Numbers are compared as float64, strings by their code points. Types never mix: `True` is not 1, and
"1" is not 1.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn

import msgspec

from core.attributes.values import UNAVAILABLE, Value, is_name, is_unicode
from core.errors import FieldError, Invalid
from core.limits import (
    ATTRIBUTE_CHARACTERS_MAX,
    FILTER_CONDITIONS_MAX,
    FILTER_LEVELS_MAX,
    FILTER_VALUES_MAX,
)

Row = Mapping[str, Value]
"""The attributes of a row."""

_SHOWN_CHARACTERS: Final = 40
_OPERATORS: Final = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not")
"""Of one attribute."""
_TOO_DEEP: Final = f"is nested too deep: the most is {FILTER_LEVELS_MAX} levels"
_NUMBER: Final = (int, float)
"""As a tuple, since a union would be made again for each value."""
_BOUNDS: Final = frozenset({"$gt", "$gte", "$lt", "$lte"})


class OneOf(msgspec.Struct, frozen=True):
    """The attribute, or one of the strings of a list, is one of these values."""

    name: str
    strings: frozenset[str] = frozenset()
    numbers: frozenset[float] = frozenset()
    booleans: frozenset[bool] = frozenset()

    def matches(self, attributes: Row) -> bool:
        """Whether a row with these attributes matches."""
        value = attributes.get(self.name)
        if isinstance(value, bool):
            return value in self.booleans
        if isinstance(value, str):
            return value in self.strings
        if isinstance(value, int | float):
            return float(value) in self.numbers
        return value is not None and not self.strings.isdisjoint(value)


class Within(msgspec.Struct, frozen=True):
    """The attribute is a number between two bounds."""

    name: str
    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    """Whether `low` itself is outside."""
    below_high: bool = False
    """Whether `high` itself is outside."""

    def matches(self, attributes: Row) -> bool:
        """Whether a row with these attributes matches."""
        value = attributes.get(self.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        number = float(value)
        above = number > self.low if self.above_low else number >= self.low
        return above and (number < self.high if self.below_high else number <= self.high)


class Exists(msgspec.Struct, frozen=True):
    """The row has the attribute."""

    name: str

    def matches(self, attributes: Row) -> bool:
        """Whether a row with these attributes matches."""
        return self.name in attributes


class AllOf(msgspec.Struct, frozen=True):
    """Every one of these matches: of none, every row does."""

    filters: "tuple[Filter, ...]"

    def matches(self, attributes: Row) -> bool:
        """Whether a row with these attributes matches."""
        return all(each.matches(attributes) for each in self.filters)


class AnyOf(msgspec.Struct, frozen=True):
    """At least one of these matches."""

    filters: "tuple[Filter, ...]"

    def matches(self, attributes: Row) -> bool:
        """Whether a row with these attributes matches."""
        return any(each.matches(attributes) for each in self.filters)


class Not(msgspec.Struct, frozen=True):
    """The exact complement."""

    filter: "Filter"

    def matches(self, attributes: Row) -> bool:
        """Whether a row with these attributes matches."""
        return not self.filter.matches(attributes)


Filter = OneOf | Within | Exists | AllOf | AnyOf | Not


def parse_filter(
    value: Any, at: str = "filter", unavailable: Collection[str] = frozenset()
) -> Filter:
    """The filter that a decoded JSON value is.

    Args:
        value: the value, as decoded.
        at: its place in the request, for errors.
        unavailable: attributes that it may not have a condition on.

    Raises:
        Invalid: with one entry for each mistake, up to the first limit that is exceeded.
    """
    parser = _Parser(unavailable)
    try:
        parsed = parser.filter(value, at, 1)
    except _LimitExceededError:
        parsed = None
    if parsed is None or parser.errors:
        raise Invalid.of(*parser.errors)
    return parsed


class _LimitExceededError(Exception):
    """The filter is too large to look at the rest of it."""


class _Parser:
    """One filter being parsed: what was wrong, and how much of each limit is used."""

    def __init__(self, unavailable: Collection[str]) -> None:
        self.errors: list[FieldError] = []
        self._unavailable = unavailable
        self._conditions = 0
        self._values = 0

    def filter(self, value: Any, at: str, level: int) -> Filter:
        """A filter object: names and logical operators side by side."""
        if level > FILTER_LEVELS_MAX:
            self._stop(at, _TOO_DEEP)
        if not isinstance(value, dict) or not value:
            self._count_condition(at)
        if not isinstance(value, dict):
            return self._wrong(at, f"takes an object, not {_described(value)}")
        return _all([self._member(name, part, at, level) for name, part in value.items()])

    def _member(self, name: Any, value: Any, at: str, level: int) -> Filter:
        if name in ("$and", "$or"):
            place = f"{at}.{name}"
            if not isinstance(value, list) or not value:
                self._count_condition(place)
                return self._wrong(place, "takes a list of at least one filter")
            parts = tuple(
                self.filter(part, f"{place}[{i}]", level + 1) for i, part in enumerate(value)
            )
            return AllOf(parts) if name == "$and" else AnyOf(parts)
        if name == "$not":
            return Not(self.filter(value, f"{at}.$not", level + 1))
        if not isinstance(name, str) or not is_name(name):
            self._count_condition(at)
            if isinstance(name, str) and name.startswith("$"):
                known = "$and, $or, $not, or the name of an attribute"
                return self._wrong(at, f"has {_shown(name)!r}, where it takes {known}")
            takes = "it takes 1 to 64 of A-Z a-z 0-9 _ -"
            return self._wrong(at, f"has the name {_shown(name)!r}: {takes}")
        if name in self._unavailable:
            self._wrong(f"{at}.{name}", UNAVAILABLE)
        return self._condition(name, value, f"{at}.{name}", level)

    def _condition(self, name: str, value: Any, at: str, level: int) -> Filter:
        """What is asked of one attribute: a bare value, or operators side by side."""
        if not isinstance(value, dict):
            self._count_condition(at)
            return self._one_of(name, [value], [at])
        if not value:
            self._count_condition(at)
            self._wrong(at, f"has no operator: it takes {', '.join(_OPERATORS)}, or a bare value")
        return _all(
            [self._operator(name, operator, part, at, level) for operator, part in value.items()]
        )

    def _operator(self, name: str, operator: Any, value: Any, at: str, level: int) -> Filter:
        if operator == "$not":
            return self._complement(name, value, f"{at}.$not", level + 1)
        self._count_condition(at)
        if operator in _OPERATORS:
            return self._comparison(name, operator, value, f"{at}.{operator}")
        known = f"it takes {', '.join(_OPERATORS)}"
        return self._wrong(at, f"has {_shown(operator)!r}, which is no operator: {known}")

    def _complement(self, name: str, value: Any, at: str, level: int) -> Filter:
        if level > FILTER_LEVELS_MAX:
            self._stop(at, _TOO_DEEP)
        if isinstance(value, dict):
            return Not(self._condition(name, value, at, level))
        self._count_condition(at)
        return self._wrong(at, f"takes an object of operators, not {_described(value)}")

    def _comparison(self, name: str, operator: str, value: Any, at: str) -> Filter:
        if operator in _BOUNDS:
            return self._within(name, operator, value, at)
        if operator == "$exists":
            if not isinstance(value, bool):
                self._wrong(at, f"takes true or false, not {_described(value)}")
            return Exists(name) if value is True else Not(Exists(name))
        values = [value]
        places = [at]
        if operator in {"$in", "$nin"}:
            if not isinstance(value, list):
                return self._wrong(at, f"takes a list of values, not {_described(value)}")
            values = value
            places = [f"{at}[{i}]" for i in range(len(value))]
        found = self._one_of(name, values, places)
        return Not(found) if operator in {"$ne", "$nin"} else found

    def _within(self, name: str, operator: str, value: Any, at: str) -> Within:
        if isinstance(value, bool) or not isinstance(value, _NUMBER):
            self._wrong(at, f"takes a number, not {_described(value)}")
            return Within(name)
        bound = self._value(value, at)
        if not isinstance(bound, float):
            return Within(name)
        if operator in ("$gt", "$gte"):
            return Within(name, low=bound, above_low=operator == "$gt")
        return Within(name, high=bound, below_high=operator == "$lt")

    def _one_of(self, name: str, values: list[Any], places: list[str]) -> OneOf:
        valid = [self._value(value, at) for value, at in zip(values, places, strict=True)]
        return OneOf(
            name,
            frozenset(value for value in valid if isinstance(value, str)),
            frozenset(value for value in valid if isinstance(value, float)),
            frozenset(value for value in valid if isinstance(value, bool)),
        )

    def _value(self, value: Any, at: str) -> str | float | bool | None:
        """A value to compare with, numbers as float; None where it is none."""
        self._values += 1
        if self._values > FILTER_VALUES_MAX:
            self._stop(at, f"is one value too many: a filter has up to {FILTER_VALUES_MAX}")
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._string(value, at)
        if isinstance(value, _NUMBER):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
            self._wrong(at, "is beyond the numbers of float64")
        elif value is None:
            self._wrong(at, 'takes no null: {"$exists": false} matches rows without the attribute')
        elif isinstance(value, list):
            self._wrong(at, "takes one string, number or boolean, not a list, which $in takes")
        else:
            self._wrong(at, f"takes a string, a number or a boolean, not {_described(value)}")
        return None

    def _string(self, value: str, at: str) -> str | None:
        if len(value) > ATTRIBUTE_CHARACTERS_MAX:
            most = f"no attribute has more than {ATTRIBUTE_CHARACTERS_MAX}"
            self._wrong(at, f"has {len(value)} characters: {most}")
            return None
        if not is_unicode(value):
            self._wrong(at, "is not valid Unicode")
            return None
        return value

    def _count_condition(self, at: str) -> None:
        self._conditions += 1
        if self._conditions > FILTER_CONDITIONS_MAX:
            self._stop(at, f"is one condition too many: a filter has up to {FILTER_CONDITIONS_MAX}")

    def _wrong(self, at: str, message: str) -> AllOf:
        """Notes an error; what stands in the place of the part until all are found."""
        self.errors.append(FieldError(at, message))
        return AllOf(())

    def _stop(self, at: str, message: str) -> NoReturn:
        self._wrong(at, message)
        raise _LimitExceededError


def _all(filters: list[Filter]) -> Filter:
    return filters[0] if len(filters) == 1 else AllOf(tuple(filters))


def _described(value: Any) -> str:
    """The JSON type of a value, for an error."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), "a value of another type")


def _shown(name: Any) -> str:
    """A name of the caller's, short and printable."""
    text = str(name)
    shown = "".join(c if c.isprintable() else "?" for c in text[:_SHOWN_CHARACTERS])
    return shown if len(text) <= _SHOWN_CHARACTERS else f"{shown}…"
