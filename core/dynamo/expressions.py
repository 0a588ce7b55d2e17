"""DynamoDB expressions, built so that names and values are never part of their text.

Every attribute name becomes `#n0`, every value `:v0`: no reserved word clashes, and nothing a
caller sent is ever read as an expression.

    await dynamo.call(
        "update_item",
        TableName=table,
        Key=key(build_id=build_id),
        **expressions(
            update=Update(set={"status": "running"}, add={"fence": 1}, remove=("error",)),
            condition=exists("build_id") & equals("fence", 3),
        ),
    )
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from core.dynamo.items import attribute_of
from core.dynamo.wire import AttributeValue, RequestItem, RequestValue

Plain = str | int | bool | bytes | list[str] | AttributeValue | None
"""A value as Python has it, or one as it came off the wire."""


class _Aliases:
    """The names and values of all the expressions of one call."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.values: dict[str, RequestValue] = {}

    def name(self, attribute: str) -> str:
        alias = self.names.get(attribute)
        if alias is None:
            alias = self.names[attribute] = f"#n{len(self.names)}"
        return alias

    def value(self, plain: Plain) -> str:
        alias = f":v{len(self.values)}"
        self.values[alias] = attribute_of(plain)
        return alias


class Condition:
    """A condition. Combine with `&` and `|`."""

    def __init__(self, render: Callable[[_Aliases], str]) -> None:
        self._render = render

    def render(self, aliases: _Aliases) -> str:
        """Its text; its names and values are added to `aliases`."""
        return self._render(aliases)

    def __and__(self, other: "Condition") -> "Condition":
        return Condition(lambda to: f"({self.render(to)} AND {other.render(to)})")

    def __or__(self, other: "Condition") -> "Condition":
        return Condition(lambda to: f"({self.render(to)} OR {other.render(to)})")


def _compare(attribute: str, operator: str, value: Plain) -> Condition:
    return Condition(lambda to: f"{to.name(attribute)} {operator} {to.value(value)}")


def exists(attribute: str) -> Condition:
    """The row has the attribute; of a key attribute: the row is there."""
    return Condition(lambda to: f"attribute_exists({to.name(attribute)})")


def missing(attribute: str) -> Condition:
    """The row has no such attribute; of a key attribute: there is no row."""
    return Condition(lambda to: f"attribute_not_exists({to.name(attribute)})")


def equals(attribute: str, value: Plain) -> Condition:
    """The attribute is there and equal to the value."""
    return _compare(attribute, "=", value)


def differs(attribute: str, value: Plain) -> Condition:
    """The attribute is not equal to the value, or not there."""
    return _compare(attribute, "<>", value)


def below(attribute: str, value: Plain) -> Condition:
    """The attribute is less than the value."""
    return _compare(attribute, "<", value)


def above(attribute: str, value: Plain) -> Condition:
    """The attribute is greater than the value."""
    return _compare(attribute, ">", value)


def one_of(attribute: str, values: Iterable[Plain]) -> Condition:
    """The attribute equals one of the values, 1 to 100 of them."""
    choices = tuple(values)
    return Condition(
        lambda to: f"{to.name(attribute)} IN ({', '.join(to.value(value) for value in choices)})"
    )


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """An update of a row. A value of None in `set` removes the attribute."""

    set: Mapping[str, Plain] = {}
    set_if_missing: Mapping[str, Plain] = {}
    """Set where the row has no such attribute yet."""
    add: Mapping[str, int] = {}
    """Added to a number; a missing one counts as 0."""
    remove: tuple[str, ...] = ()

    def render(self, aliases: _Aliases) -> str:
        """Its text; its names and values are added to `aliases`."""
        removed = [*self.remove, *(name for name, value in self.set.items() if value is None)]
        assigned = [
            f"{aliases.name(name)} = {aliases.value(value)}"
            for name, value in self.set.items()
            if value is not None
        ] + [
            f"{(alias := aliases.name(name))} = if_not_exists({alias}, {aliases.value(value)})"
            for name, value in self.set_if_missing.items()
        ]
        clauses = {
            "SET": assigned,
            "ADD": [f"{aliases.name(n)} {aliases.value(v)}" for n, v in self.add.items()],
            "REMOVE": [aliases.name(name) for name in removed],
        }
        return " ".join(f"{verb} {', '.join(parts)}" for verb, parts in clauses.items() if parts)


def expressions(
    *,
    key: Condition | None = None,
    condition: Condition | None = None,
    filtered: Condition | None = None,
    update: Update | None = None,
    projection: Iterable[str] | None = None,
) -> dict[str, Any]:
    """The parameters of one call (or of one part of a transaction) for all its expressions.

    A query has a `key`, a write a `condition`. DynamoDB counts a page before it is `filtered`.
    `projection` are the attributes to return.
    """
    aliases = _Aliases()
    parameters: dict[str, Any] = {}
    for name, part in (
        ("KeyConditionExpression", key),
        ("ConditionExpression", condition),
        ("FilterExpression", filtered),
        ("UpdateExpression", update),
    ):
        text = part.render(aliases) if part is not None else ""
        if text:
            parameters[name] = text
    if projection is not None:
        parameters["ProjectionExpression"] = ", ".join(map(aliases.name, projection))
    if aliases.names:
        parameters["ExpressionAttributeNames"] = {a: name for name, a in aliases.names.items()}
    if aliases.values:
        parameters["ExpressionAttributeValues"] = aliases.values
    return parameters


def key(**attributes: str) -> RequestItem:
    """A row's key in the request's form: `key(product_id=..., model_version=...)`."""
    return {name: {"S": value} for name, value in attributes.items()}
