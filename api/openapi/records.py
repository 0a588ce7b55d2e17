"""What the reference says of users and reports."""

from typing import Final

from api.openapi.parts import Operation, Route, Schema, object_, paged, path_parameters
from core.settings import Settings

_TAG: Final[dict[str, Schema]] = {
    "ETag": {
        "description": "The version, for `If-Match`.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    }
}
_LOCATION: Final[dict[str, Schema]] = {
    "Location": {"required": True, "schema": {"type": "string", "pattern": "^/"}}
}
_LINE: Final = r"^[^\u0000-\u001f]*[^\s\u0000-\u001f\u0085][^\u0000-\u001f]*$"
"""Text that is not blank, and without control characters."""
_EMAIL: Final = r"^[^@\s\u0000-\u001f\u0085]+@[^@\s\u0000-\u001f\u0085]+$"
_HTTPS: Final = r"^https://[A-Za-z0-9][^\s\u0000-\u001f/?#\[\]]*([/?#][^\s\u0000-\u001f]*)?$"
_IF_MATCH: Final[Schema] = {
    "name": "If-Match",
    "in": "header",
    "schema": {"type": "string"},
    "description": "`ETag`s of which the report must have one, or `*`; else 412.",
}


def on_records(settings: Settings) -> dict[Route, Operation]:
    """The operations on users and reports."""
    profile, report = _profile(settings), _report(settings)
    return {
        ("/users", "post"): Operation(
            (400, 409, 413, 422),
            body={"application/json": _new(profile, "preferences")},
            example={"name": "Ada", "preferences": {"theme": "dark"}},
            answers=(201,),
            headers=_LOCATION,
        ),
        ("/users/{user_id}", "get"): Operation((400, 404)),
        ("/users/{user_id}", "patch"): Operation(
            (400, 404, 409, 412, 413, 422),
            body={"application/json": profile},
            example={"email": "ada@example.com"},
        ),
        ("/users/{user_id}", "delete"): Operation((400, 404, 409), answers=(202,)),
        ("/reports", "post"): Operation(
            (400, 409, 413, 422),
            body={"application/json": {**report, "required": ["title"]}},
            example={"title": "Test Report", "favorites": ["pandas", "numpy"]},
            answers=(201,),
            headers={**_LOCATION, **_TAG},
        ),
        ("/reports", "get"): Operation((400, 422), query=paged(settings.limits)),
        ("/reports/{report_id}", "get"): Operation((400, 404), headers=_TAG),
        ("/reports/{report_id}", "patch"): Operation(
            (400, 404, 409, 412, 413, 422),
            query=(_IF_MATCH,),
            body={"application/json": report},
            example={"title": "Renamed"},
            headers=_TAG,
        ),
        ("/reports/{report_id}", "delete"): Operation(
            (400, 404, 409, 412), query=(_IF_MATCH,), answers=(204,)
        ),
    }


def _profile(settings: Settings) -> Schema:
    records = settings.records
    return object_(
        {
            "name": _text(200),
            "email": {**_text(254), "pattern": _EMAIL},
            "avatar_url": {**_text(2048), "pattern": _HTTPS, "description": "An https address."},
            "preferences": {
                "type": ["object", "null"],
                "description": (
                    f"Any JSON object, to {records.preferences_bytes_max} bytes and "
                    f"{records.preferences_levels_max} levels; it comes back exactly as sent."
                ),
            },
        }
    )


def _report(settings: Settings) -> Schema:
    records = settings.records
    return object_(
        {
            "title": {"type": "string", "minLength": 1, "maxLength": 500, "pattern": _LINE},
            "author": _text(500),
            "date": {"type": ["string", "null"], "format": "date"},
            "reference": _text(2000),
            "favorites": {
                "type": ["array", "null"],
                "items": path_parameters(settings.limits)["product_id"],
                "description": (
                    f"Product ids in order, each once; up to {records.favorites_max}, and "
                    f"{records.favorites_bytes_max} bytes in all."
                ),
            },
        }
    )


def _text(characters_max: int) -> Schema:
    """A line of text; null removes it."""
    return {
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": characters_max,
        "pattern": _LINE,
    }


def _new(record: Schema, name: str) -> Schema:
    """The same where there is nothing yet to remove with a null."""
    properties = record["properties"]
    return {**record, "properties": {**properties, name: {**properties[name], "type": "object"}}}
