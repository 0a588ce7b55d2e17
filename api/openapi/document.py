"""`/openapi.json`: what Litestar knows of the routes, and what `operations` adds."""

from collections.abc import Sequence
from copy import deepcopy
from http import HTTPStatus
from typing import Any, Final

from litestar import Controller, Litestar
from litestar.openapi import OpenAPIConfig

from api.admission.quotas import BodyLimits
from api.http.idempotency import KEY_CHARACTERS_MAX
from api.http.problems import PROBLEM_JSON, TABLE, UNKNOWN_TYPE
from api.openapi.links import links
from api.openapi.operations import BINARY, operations
from api.openapi.parts import Operation, Schema, path_parameters
from core.settings import Settings

TITLE: Final = "K9"
VERSION: Final = "1.0.0"
"""Of the API, not of the software: raised when a client would notice."""

_ALWAYS: Final = (500, 503)
_GUARDED: Final = (401, 403, 429)
_KEY: Final[Schema] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": KEY_CHARACTERS_MAX,
        "pattern": "^[!-~]([ -~]*[!-~])?$",
    },
    "description": (
        "The same request under the same key within 24 hours answers as before and has no second "
        "effect. A different request under it is 422; one still in flight is 409."
    ),
}
_REQUEST_ID: Final[Schema] = {
    "description": "The request's own where it has one that holds.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
}
_KEY_PROBLEMS: Final = (400, 409, 413, 415, 422)
_DESCRIPTION: Final = (
    "Nearest neighbours of product embeddings. Errors are RFC 9457 problem details. Bodies are "
    "JSON; those that carry vectors may be `application/msgpack`, a vector then being a float32 "
    "little-endian `bin`, and are answered so for `Accept: application/msgpack`. "
    "A body may be coded with gzip or zstd; decoded it may have {record_bytes_max} bytes, one "
    "embedding {vector_bytes_max}, a batch {batch_bytes_max}, a search {search_bytes_max}, less "
    "where its model version has shorter vectors. After {body_grace_s:g} s it must have come at "
    "{body_rate_min} bytes a second. A caller that has too much in flight is answered 429 with "
    "`Retry-After`, and 503 where the process as a whole has."
)
_RIGHTS: Final = {
    "open": "Open: takes no token.",
    "caller": "Takes any valid token.",
    "reader": "Takes the group `readers` or the scope `k9/read`; operators have it too.",
    "operator": "Takes the group `operators` or the scope `k9/operate`.",
}


def document(controllers: Sequence[type[Controller]], settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of these controllers, with the limits of these settings."""
    described = Litestar(
        list(controllers),
        openapi_config=OpenAPIConfig(
            title=TITLE, version=VERSION, render_plugins=[], use_handler_docstrings=True
        ),
        logging_config=None,
    )
    schema: dict[str, Any] = described.openapi_schema.to_schema()
    http, sizes = settings.http, BodyLimits(settings)
    schema["info"]["description"] = _DESCRIPTION.format(
        record_bytes_max=sizes.record,
        vector_bytes_max=sizes.vector,
        batch_bytes_max=sizes.batch,
        search_bytes_max=sizes.search,
        body_grace_s=http.body_grace_s,
        body_rate_min=http.body_rate_min,
    )
    schema["servers"] = [{"url": "/", "description": "Where this document is served."}]
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "bearerFormat": "Cognito access token"}
    }
    schemas = components.setdefault("schemas", {})
    _say_times(schemas)
    schemas |= _packed_schemas(schemas)
    schemas["Problem"] = _problem()
    components["responses"] = _problem_responses()
    places = path_parameters(settings.limits)
    for (path, method), operation in operations(settings).items():
        described_as = schema["paths"][path][method]
        _complete(described_as, operation, places, writes=_writes(path, method))
        _link(described_as["responses"], links((path, method), schema["paths"]))
    return schema


def _writes(path: str, method: str) -> bool:
    """Whether a route takes an idempotency key. A search changes nothing."""
    return method in {"post", "put", "patch", "delete"} and not path.endswith("/search")


def _complete(
    described: dict[str, Any], operation: Operation, places: dict[str, Schema], *, writes: bool
) -> None:
    said = described.get("description", "")
    described["description"] = f"{said}\n\n{_RIGHTS[operation.right]}".strip()
    described["security"] = [] if operation.right == "open" else [{"token": []}]
    parameters = [
        {
            "name": parameter["name"],
            "in": "path",
            "required": True,
            "schema": places[parameter["name"]],
        }
        for parameter in described.get("parameters", ())
        if parameter["in"] == "path"
    ]
    described["parameters"] = [*parameters, *operation.query, *((_KEY,) if writes else ())]
    if operation.body is not None:
        content: dict[str, Any] = {
            media: {"schema": schema} for media, schema in operation.body.items()
        }
        content["application/json"]["example"] = operation.example
        described["requestBody"] = {"required": operation.body_required, "content": content}
    also = _KEY_PROBLEMS if writes else ()
    described["responses"] = _responses(described["responses"], operation, also)


def _say_times(schemas: dict[str, Any]) -> None:
    """All times are RFC 3339, and all are named so."""
    for schema in schemas.values():
        for name, found in schema.get("properties", {}).items():
            if name.endswith("_at"):
                for kind in (found, *found.get("oneOf", ())):
                    if kind.get("type") == "string":
                        kind["format"] = "date-time"


def _packed_schemas(schemas: dict[str, Any]) -> dict[str, Any]:
    """The answers that carry vectors, as they are in msgpack."""
    item, page = deepcopy(schemas["EmbeddingItem"]), deepcopy(schemas["EmbeddingPage"])
    item["title"], page["title"] = "PackedEmbeddingItem", "PackedEmbeddingPage"
    item["properties"]["vector"] = BINARY
    page["properties"]["items"]["items"] = _packed(page["properties"]["items"]["items"])
    return {"PackedEmbeddingItem": item, "PackedEmbeddingPage": page}


def _packed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an answer as it is in msgpack."""
    place, _, name = schema.get("$ref", "").rpartition("/")
    if name in {"EmbeddingItem", "EmbeddingPage"}:
        return {"$ref": f"{place}/Packed{name}"}
    return schema


def _link(responses: dict[str, Any], found: dict[str, Any]) -> None:
    for status, response in responses.items():
        if found and status.startswith("2"):
            response["links"] = found


def _responses(
    described: dict[str, Any], operation: Operation, also: tuple[int, ...]
) -> dict[str, Any]:
    content = next((r["content"] for r in described.values() if "content" in r), None)
    answer: dict[str, Any] = next(iter((content or {}).values()), {})
    if operation.answer_example is not None:
        answer = {**answer, "example": operation.answer_example}
    responses: dict[str, Any] = {}
    for status in operation.answers:
        response: dict[str, Any] = {
            "description": HTTPStatus(status).phrase,
            "headers": {"X-Request-Id": _REQUEST_ID},
        }
        if operation.headers:
            response["headers"] |= dict(operation.headers)
        if status != HTTPStatus.NO_CONTENT:
            response["content"] = {"application/json": answer}
            if operation.answer is not None:
                response["content"] = {
                    media: {"schema": schema, "example": operation.answer_example}
                    for media, schema in operation.answer.items()
                }
            if operation.msgpack:
                response["content"]["application/msgpack"] = {
                    "schema": _packed(answer.get("schema", {}))
                }
        responses[str(status)] = response
    guarded = () if operation.right == "open" else _GUARDED
    always = (500,) if operation.right == "open" else _ALWAYS
    for status in sorted({*operation.problems, *guarded, *always, *also}):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/{_name(status)}"})
    return responses


def _problem_responses() -> dict[str, Any]:
    slugs: dict[int, set[str]] = {}
    for kind in TABLE.values():
        slugs.setdefault(kind.status, set()).add(kind.slug)
    responses: dict[str, Any] = {}
    for status, found in sorted(slugs.items()):
        response: dict[str, Any] = {
            "description": f"{HTTPStatus(status).phrase}: "
            + ", ".join(f"`{slug}`" for slug in sorted(found)),
            "headers": {"X-Request-Id": _REQUEST_ID},
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
            seconds = {"description": "Seconds.", "schema": {"type": "integer"}}
            response["headers"] |= {"Retry-After": seconds}
        if status == HTTPStatus.UNAUTHORIZED:
            response["headers"] |= {"WWW-Authenticate": {"schema": {"type": "string"}}}
        responses[_name(status)] = response
    return responses


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _problem() -> Schema:
    slugs = sorted({kind.slug for kind in TABLE.values()} | {UNKNOWN_TYPE, "method-not-allowed"})
    return {
        "type": "object",
        "description": "A problem detail (RFC 9457).",
        "required": ["type", "title", "status"],
        "properties": {
            "type": {"type": "string", "enum": slugs},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "errors": {
                "type": "array",
                "description": "Of a body that does not hold: one entry a field.",
                "items": {
                    "type": "object",
                    "required": ["field", "message"],
                    "properties": {
                        "field": {"type": "string", "example": "embeddings[3].vector"},
                        "message": {"type": "string"},
                    },
                },
            },
            "stored": {"type": "integer", "description": "Of a batch that was stored in part."},
            "unprocessed": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The product ids that were not stored.",
            },
        },
    }
