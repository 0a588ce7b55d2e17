"""JSON Schemas of the wire types, by msgspec: their `Meta` bounds, docstrings and defaults."""

from collections.abc import Iterator
from copy import deepcopy
from inspect import cleandoc
from typing import Any, Final

import msgspec
from litestar._openapi.schema_generation import SchemaCreator
from litestar.openapi.spec import Schema as LitestarSchema
from litestar.plugins import OpenAPISchemaPlugin
from litestar.typing import FieldDefinition

from api.http.problems import TABLE, UNKNOWN_TYPE, Problem
from api.wire.fields import VECTOR, Answer, Body
from api.wire.questions import BoostBody, RecommendBody
from core.limits import DIMENSION_MAX

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_BINARY: Final[Schema] = {
    "type": "string",
    # Not `binary`: that is a file of its own to generators, and a vector stands inside a body.
    "format": "float32-le",
    "description": "A msgpack `bin` of float32, little-endian, four bytes a number.",
}
_EITHER: Final[Schema] = {
    "oneOf": [{**_BINARY, "minLength": 4, "maxLength": 4 * DIMENSION_MAX}, VECTOR]
}
_PACKED: Final = "Packed"
_SHARED: Final = frozenset(
    {BoostBody.__name__, RecommendBody.__name__, _PACKED + RecommendBody.__name__}
)
"""Parts without defaults that stand in several bodies."""


class StructReferences(OpenAPISchemaPlugin):
    """Has Litestar refer to Structs; `components` describes them, with all that `Meta` says."""

    def is_plugin_supported_field(self, field_definition: FieldDefinition) -> bool:
        """Whether the field is a Struct."""
        return not field_definition.is_union and field_definition.is_subclass_of(msgspec.Struct)

    def to_openapi_schema(
        self, field_definition: FieldDefinition, schema_creator: SchemaCreator
    ) -> LitestarSchema:
        """A component of its name, to be described later."""
        return schema_creator.create_component_schema(
            field_definition, required=[], property_fields={}
        )


def components() -> dict[str, Schema]:
    """Name → schema of everything that goes over the wire."""
    kinds: list[type[Any]] = [Problem, *_below(Body), *_below(Answer)]
    concrete = [kind for kind in kinds if "oneOf" not in getattr(kind, "SCHEMA", {})]
    _, found = msgspec.json.schema_components(concrete, schema_hook=lambda _: {}, ref_template=_REF)
    for kind in kinds:
        own = getattr(kind, "SCHEMA", {})
        found[kind.__name__] = {"title": kind.__name__, **found.get(kind.__name__, {}), **own}
    for schema in found.values():
        tidy(schema)
    slugs = {kind.slug for kind in TABLE.values()} | {UNKNOWN_TYPE, "method-not-allowed"}
    found["Problem"]["properties"]["type"]["enum"] = sorted(slugs)
    return found


def packed(schema: Schema, found: dict[str, Schema], *, sent: bool) -> Schema:
    """The schema as it is in msgpack, where vectors are bytes; its parts are added to `found`.

    Args:
        schema: A schema of JSON, with references.
        found: The components.
        sent: Whether callers send it, who may send vectors as numbers too.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        plain = found[name]
        changed = packed(plain, found, sent=sent)
        if changed == plain:
            return schema
        found[_PACKED + name] = {**changed, "title": _PACKED + name}
        return {"$ref": _REF.format(name=_PACKED + name)}
    schema = deepcopy(schema)
    vector = _EITHER if sent else _BINARY
    for name, each in schema.get("properties", {}).items():
        if name == "vector":
            schema["properties"][name] = vector
        elif name == "vectors":
            schema["properties"][name] = {**each, "items": vector}
        elif name in {"positive", "negative"}:
            product_id, _ = each["items"]["oneOf"]
            # Text and bytes are one type in JSON Schema: an example may be both.
            examples = {"anyOf": [product_id, *vector.get("oneOf", [vector])]}
            schema["properties"][name] = {**each, "items": examples}
        elif "$ref" in each:
            schema["properties"][name] = packed(each, found, sent=sent)
        elif "items" in each:
            schema["properties"][name] = {**each, "items": packed(each["items"], found, sent=sent)}
    if "oneOf" in schema:
        schema["oneOf"] = [packed(each, found, sent=sent) for each in schema["oneOf"]]
    return schema


def inlined(schema: Schema, found: dict[str, Schema]) -> Schema:
    """The schema of a body with its parts in their places.

    Of a default in a component, generators make a member that is always there.
    """
    whole: Schema = _resolved(schema, found, "")
    del whole["title"]
    return whole


def _resolved(schema: Any, found: dict[str, Schema], prefix: str) -> Any:
    if isinstance(schema, list):
        return [_resolved(each, found, prefix) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in _SHARED:
            return schema
        prefix = prefix or (_PACKED if name.startswith(_PACKED) else "")
        part: Schema = _resolved(found[name], found, prefix)
        part["title"] = prefix + part["title"].removeprefix(prefix)
        return part
    return {name: _resolved(each, found, prefix) for name, each in schema.items()}


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for each in kind.__subclasses__():
        if each.__module__.startswith("api.wire."):
            yield each
            yield from _below(each)


def tidy(schema: Any) -> None:
    """Docstrings without their indentation, and whole numbers as integers."""
    if isinstance(schema, dict):
        if isinstance(schema.get("description"), str):
            schema["description"] = cleandoc(schema["description"])
        if schema.get("multipleOf") == 1:
            del schema["multipleOf"]
            schema["type"] = "integer"
        for name in ("minimum", "maximum"):
            if isinstance(schema.get(name), float) and schema[name].is_integer():
                schema[name] = int(schema[name])
    for each in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(each, dict | list):
            tidy(each)
