"""What the reference is made of: operations, parameters, schemas."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from core.identifiers import REPORT_ID
from core.settings import Limits

Schema = dict[str, Any]
Route = tuple[str, str]
"""Path and method, the latter in lower case."""


_CONTROL: Final = r"\u0000-\u001f\u007f-\u009f"
_PRINTABLE: Final = rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$"
"""Not blank, and without control characters."""


class Operation(msgspec.Struct, frozen=True):
    """What one route adds."""

    problems: tuple[int, ...]
    """Statuses of the problems it may answer with, beyond those that every route may."""
    right: str = "caller"
    """Who may: `open`, `caller`, `reader`, `operator`."""
    query: tuple[Schema, ...] = ()
    body: Mapping[str, Schema] | None = None
    """Media type → schema."""
    body_required: bool = True
    example: Any = None
    """Of the JSON body."""
    answers: tuple[int, ...] = (200,)
    """Statuses of success; all have the handler's answer for a body, but 204."""
    headers: Mapping[str, Schema] = {}
    """Of success."""
    answer_example: Any = None
    answer: Mapping[str, Schema] | None = None
    """Media type → schema, where the handler's own answer does not say it."""
    msgpack: bool = False
    """Whether the answer comes as msgpack too."""


def path_parameters(limits: Limits) -> dict[str, Schema]:
    """Schemas of what stands in paths."""
    return {
        "model_version": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
            "example": "minilm-l6-v2",
        },
        "product_id": {
            "type": "string",
            "minLength": 1,
            "maxLength": limits.product_id_bytes_max,
            "pattern": _PRINTABLE,
            "not": {"enum": [".", ".."]},
            "description": (
                f"1 to {limits.product_id_bytes_max} bytes of UTF-8, not blank, not `.` or `..`, "
                "without control characters; percent-encoded, a slash too (`%2F`)."
            ),
            "example": "pandas",
        },
        "build_id": {"type": "string", "minLength": 1, "maxLength": 64},
        "user_id": {
            "type": "string",
            "minLength": 1,
            "description": "The caller's own, or `me`.",
            "example": "me",
        },
        "report_id": {"type": "string", "pattern": f"^{REPORT_ID}$"},
    }


def object_(properties: Schema, required: list[str] | None = None, **more: Any) -> Schema:
    """The schema of an object that takes no other members."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return {**schema, "required": required} if required else schema


def parameter(name: str, schema: Schema, description: str) -> Schema:
    """A parameter of the query."""
    return {"name": name, "in": "query", "schema": schema, "description": description}


def integer(name: str, least: int, most: int, default: int, description: str) -> Schema:
    """A parameter of the query that is a whole number."""
    schema = {"type": "integer", "minimum": least, "maximum": most, "default": default}
    return parameter(name, schema, description)


def paged(limits: Limits) -> tuple[Schema, ...]:
    """The parameters of a list."""
    return (
        integer("limit", 1, limits.page_rows_max, 20, "Items a page."),
        parameter(
            "cursor",
            {"type": "string", "pattern": "^[A-Za-z0-9_-]*$"},
            "`next_cursor` of the page before: opaque, of this caller and list, good for "
            f"{limits.cursor_ttl_s // 3600} hours.",
        ),
    )
