"""What the reference says of each route beyond its handler: bodies, queries, errors, examples.

Handlers read bodies and queries themselves, since a body may be JSON or msgpack and errors have an
order; so these are written here. A test holds this table against the router.
"""

from typing import Final

import msgspec

from api.openapi.parts import (
    Operation,
    Route,
    Schema,
    integer,
    object_,
    paged,
    parameter,
    path_parameters,
)
from api.openapi.records import on_records
from core.settings import Limits, Settings
from core.vectors.arrays import NORM_MAX
from core.watermarks import TOKEN_CHARACTERS_MAX

_MODEL: Final = "/models/{model_version}"

BINARY: Final[Schema] = {
    "type": "string",
    # Not `binary`: that is a file of its own to generators, and a vector stands inside a body.
    "format": "float32-le",
    "description": "A msgpack `bin` of float32, little-endian, four bytes a number.",
}
_WATERMARK_TEXT: Final[Schema] = {
    "maxLength": TOKEN_CHARACTERS_MAX,
    "minLength": 1,
    "pattern": "^[A-Za-z0-9_-]*$",
}
_WATERMARK: Final[Schema] = {
    "description": "Opaque; send it as `min_watermark` of a search that must reflect this write.",
    "required": True,
    "schema": {"type": "string", **_WATERMARK_TEXT},
}


def operations(settings: Settings) -> dict[Route, Operation]:
    """Path and method → what the route adds, with the limits of these settings."""
    limits = settings.limits
    both = _on_vectors(limits) | _on_versions(settings)
    return on_records(settings) | {
        route: msgspec.structs.replace(operation, msgpack=operation.answer is None)
        for route, operation in both.items()
    }


def _on_vectors(limits: Limits) -> dict[Route, Operation]:
    vector, packed = _vectors(limits)
    paging = paged(limits)
    k = integer("k", 1, limits.k_max, 10, "How many neighbours.")
    metric = parameter(
        "metric",
        # No default: a generated client sends one with every write, a conflict where it differs.
        {"type": "string", "enum": ["cosine", "ip", "l2"]},
        "Fixed by the first write of a model version; another one later is a conflict. Absent it "
        "is the model version's own, and `cosine` for a new one.",
    )
    return {
        (f"{_MODEL}/search", "post"): Operation(
            (400, 404, 409, 413, 415, 422),
            body={
                "application/json": _search(limits, vector),
                "application/msgpack": _search(limits, packed, "Packed"),
            },
            example={"product_id": "pandas", "k": 3, "exclude": ["numpy"]},
            answer_example=_FOUND,
        ),
        (f"{_MODEL}/products/{{product_id}}/neighbors", "get"): Operation(
            (400, 404, 409, 422), query=(k,), answer_example=_FOUND
        ),
        (f"{_MODEL}/embeddings/{{product_id}}", "put"): Operation(
            (400, 409, 413, 422),
            "operator",
            query=(metric,),
            body={
                "application/json": object_({"vector": vector}, ["vector"]),
                "application/msgpack": object_({"vector": packed}, ["vector"]),
            },
            example={"vector": [0.12, -0.5, 0.33]},
            answers=(200, 201),
            headers={"X-Watermark": _WATERMARK},
        ),
        (f"{_MODEL}/embeddings:batch", "post"): Operation(
            (400, 409, 413, 422),
            "operator",
            query=(metric,),
            body={
                "application/json": _batch(limits, vector),
                "application/msgpack": _batch(limits, packed),
            },
            example={"embeddings": [{"product_id": "sku-1", "vector": [0.12, -0.5, 0.33]}]},
            headers={"X-Watermark": _WATERMARK},
        ),
        (f"{_MODEL}/embeddings/{{product_id}}", "get"): Operation((400, 404, 409, 422), "reader"),
        (f"{_MODEL}/embeddings/{{product_id}}", "delete"): Operation(
            (400, 404, 409, 422), "operator", answers=(204,), headers={"X-Watermark": _WATERMARK}
        ),
        (f"{_MODEL}/embeddings", "get"): Operation(
            (400, 404, 409, 422),
            "reader",
            query=(
                *paging,
                parameter("vectors", {"type": "boolean", "default": True}, "With the vectors."),
            ),
        ),
    }


def _on_versions(settings: Settings) -> dict[Route, Operation]:
    limits = settings.limits
    paging = paged(limits)
    return {
        (f"{_MODEL}/builds", "post"): Operation(
            (400, 404, 409, 413, 422),
            "operator",
            body={"application/json": _build()},
            body_required=False,
            example={"target_recall": 0.95, "matrix_k": 20},
            answers=(202,),
            headers={
                "Location": {
                    "description": "`/builds/{build_id}`",
                    "required": True,
                    "schema": {"type": "string", "pattern": "^/builds/"},
                }
            },
        ),
        (f"{_MODEL}/builds", "get"): Operation((400, 404, 409, 422), "reader", query=paging),
        ("/builds/{build_id}", "get"): Operation((400, 404), "reader"),
        ("/builds/{build_id}", "delete"): Operation((400, 404, 409), "operator", answers=(202,)),
        ("/builds/{build_id}/events", "get"): Operation(
            (400, 404),
            "reader",
            answer={"text/event-stream": _events(settings)},
            answer_example=_EVENTS,
        ),
        (f"{_MODEL}/promote", "post"): Operation(
            (400, 404, 409, 413, 422),
            "operator",
            body={
                "application/json": object_(
                    {"build_id": path_parameters(limits)["build_id"]}, ["build_id"]
                )
            },
            example={"build_id": "01a206ce8d36b97501ea87038dac1d5a"},
        ),
        ("/models", "get"): Operation((400, 422), query=paging),
        (_MODEL, "get"): Operation((400, 404, 422)),
        (_MODEL, "delete"): Operation((400, 404, 409, 422), "operator", answers=(202,)),
        (f"{_MODEL}/matrix", "get"): Operation((400, 404, 409, 422), "reader"),
        ("/health/live", "get"): Operation((), "open"),
        ("/health/ready", "get"): Operation((), "open", answers=(200, 503)),
    }


def _vectors(limits: Limits) -> tuple[Schema, Schema]:
    numbers = {
        "type": "array",
        "items": {"type": "number", "minimum": -NORM_MAX, "maximum": NORM_MAX},
        "minItems": 1,
        "maxItems": limits.dimension_max,
        "description": (
            f"As many as the model version's dimension, of a norm up to {NORM_MAX:.0e}; for "
            "cosine not all of them zero."
        ),
    }
    return numbers, {
        "oneOf": [{**BINARY, "minLength": 4, "maxLength": 4 * limits.dimension_max}, numbers]
    }


def _search(limits: Limits, vector: Schema, prefix: str = "") -> Schema:
    questions: dict[str, tuple[str, Schema]] = {
        "vector": ("SearchByVector", vector),
        "product_id": (
            "SearchByProduct",
            {
                **path_parameters(limits)["product_id"],
                "description": "Itself not among the results.",
            },
        ),
        "vectors": (
            "SearchByVectors",
            {
                "type": "array",
                "items": vector,
                "minItems": 1,
                "maxItems": limits.vectors_max,
                "description": f"Vectors times k is at most {limits.vectors_times_k_max}.",
            },
        ),
    }
    options = _search_options(limits)
    return {
        "description": "Exactly one of `vector`, `product_id` and `vectors`.",
        # Each whole: of an object with a choice among its members, generators make no type.
        "oneOf": [
            object_({name: question, **options}, [name], title=prefix + title)
            for name, (title, question) in questions.items()
        ],
    }


def _search_options(limits: Limits) -> Schema:
    return {
        "k": {"type": "integer", "minimum": 1, "maximum": limits.k_max, "default": 10},
        "exact": {"type": "boolean", "default": False, "description": "Score every row."},
        "min_score": {"type": ["number", "null"]},
        "exclude": {
            "type": "array",
            "items": {"type": "string"},
            "maxItems": limits.exclude_max,
            "default": [],
        },
        "min_watermark": {
            "type": ["string", "null"],
            **_WATERMARK_TEXT,
            "description": "The `X-Watermark` of a write to reflect.",
        },
    }


def _batch(limits: Limits, vector: Schema) -> Schema:
    product_id = path_parameters(limits)["product_id"]
    entry = object_({"product_id": product_id, "vector": vector}, ["product_id", "vector"])
    many = {
        "type": "array",
        "items": entry,
        "minItems": 1,
        "maxItems": limits.batch_rows_max,
        "description": "Each product id once.",
    }
    return object_({"embeddings": many}, ["embeddings"])


def _build() -> Schema:
    return object_(
        {
            "target_recall": {"type": "number", "minimum": 0.5, "maximum": 1, "default": 0.95},
            "matrix_k": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 20},
            "deterministic": {"type": "boolean", "default": False},
            "force": {"type": "boolean", "default": False},
        }
    )


def _events(settings: Settings) -> Schema:
    http = settings.http
    return {
        # Without a type: a stream is no JSON. To generators it is text of any kind; a tool that
        # reads it event by event would hold each of them against a type.
        "contentMediaType": "text/event-stream",
        "description": (
            "Server-sent events: an event `build` at each change, its data a build as "
            "`GET /builds/{build_id}` answers, the present state first. The stream ends with the "
            "build, or when the token does; a comment every "
            f"{http.event_keepalive_s:g} s keeps it open. {http.event_streams_max} streams may be "
            "open, and one more is answered 503."
        ),
    }


_EVENTS: Final = 'event: build\ndata: {"build_id": "b-01", "status": "running"}\n\n'
_FOUND: Final = {
    "neighbors": [
        {"product_id": "polars", "score": 0.8123},
        {"product_id": "modin", "score": 0.7934},
    ],
    "index": {
        "build_id": "b-01",
        "built_at": "2026-01-01T00:00:00.000000Z",
        "recall": 0.97,
        "exact": False,
        "watermark": "2025-12-31T23:59:00.000000Z",
        "fresh": 2,
    },
}
