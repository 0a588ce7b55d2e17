"""`/openapi.json`: what Litestar reads from the handlers, and what all routes have in common."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Final

import msgspec
from litestar import Controller, Litestar
from litestar.handlers.http_handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.routes import HTTPRoute

from api.admission.quotas import BodyLimits
from api.dependencies import dependencies
from api.events import EVENT_STREAM
from api.http.hooks import BODY, OPEN, operators, readers
from api.http.idempotency import KEY_CHARACTERS_MAX
from api.http.parameters import HEADER_SCHEMAS
from api.http.problems import PROBLEM_JSON, TABLE
from api.http.request import JSON_ONLY, ApiRequest, ApiResponse
from api.openapi.links import links
from api.openapi.schemas import Schema, StructReferences, components, inlined, packed, tidy
from core.settings import Settings

TITLE: Final = "K9"
VERSION: Final = "1.0.0"
"""Of the API, not of the software: raised when a client would notice."""

_JSON: Final = "application/json"
_MSGPACK: Final = "application/msgpack"
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
    "description": "The request's own where it has a valid one.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
}
_RATE: Final[Schema] = {
    "RateLimit-Policy": {
        "description": "The caller's rate, if it has one: `q` requests in `w` seconds.",
        "schema": {"type": "string", "example": '"group:readers";q=100;w=60'},
    },
    "RateLimit": {
        "description": "Of the rate, `r` requests are left; `t` seconds until there are more.",
        "schema": {"type": "string", "example": '"group:readers";r=0;t=1'},
    },
}
_DESCRIPTION: Final = (
    "Nearest neighbours of product embeddings. Errors are RFC 9457 problem details. Bodies are "
    "JSON; those that carry vectors may be `application/msgpack`, a vector then being a float32 "
    "little-endian `bin`, and are answered so for `Accept: application/msgpack`. "
    "A body may be coded with gzip or zstd; decoded it may have {sizes.record} bytes, one "
    "embedding {sizes.vector}, a batch {sizes.batch}, a search {sizes.search}, less where its "
    "model version has shorter vectors. After {http.body_grace_s:g} s it must have come at "
    "{http.body_rate_min} bytes a second. A caller that has too much in flight is answered 429 "
    "with `Retry-After`, and 503 where the process as a whole has. One that has a rate is told of "
    "it in `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11), and is "
    "answered 429 over it."
)
_RIGHTS: Final = {
    "open": "Open: takes no token.",
    "caller": "Takes any valid token.",
    "reader": "Takes the group `readers` or the scope `k9/read`; operators have it too.",
    "operator": "Takes the group `operators` or the scope `k9/operate`.",
}


def document(controllers: Sequence[type[Controller]], settings: Settings) -> Schema:
    """The OpenAPI document of these controllers, with the limits of these settings."""
    described = Litestar(
        list(controllers),
        openapi_config=OpenAPIConfig(
            title=TITLE, version=VERSION, render_plugins=[], use_handler_docstrings=True
        ),
        dependencies=dependencies(),
        request_class=ApiRequest,
        response_class=ApiResponse,
        plugins=[StructReferences()],
        logging_config=None,
    )
    schema: Schema = described.openapi_schema.to_schema()
    http, sizes = settings.http, BodyLimits(settings)
    schema["info"]["description"] = _DESCRIPTION.format(sizes=sizes, http=http)
    schema["servers"] = [{"url": "/", "description": "Where this document is served."}]
    found = components()
    schema["components"] = {
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "bearerFormat": "Cognito access token"}
        },
        "schemas": found,
        "responses": _problem_responses(),
    }
    for path, method, handler in _handlers(described):
        operation = schema["paths"][path][method]
        _complete(operation, handler, path, method, found)
        for status, response in operation["responses"].items():
            if status.startswith("2") and (leads := links((path, method), schema["paths"])):
                response["links"] = leads
    while True:
        text = msgspec.json.encode(schema).decode()
        unused = [name for name in found if f'/schemas/{name}"' not in text]
        if not unused:
            return schema
        for name in unused:
            del found[name]


def _handlers(app: Litestar) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for method, (handler, _) in route.route_handler_map.items():
                if handler.resolve_include_in_schema():
                    yield route.path_format, method.lower(), handler


def _right(handler: HTTPRouteHandler) -> str:
    if handler.opt.get(OPEN):
        return "open"
    guards = handler.guards or ()
    return "operator" if operators in guards else "reader" if readers in guards else "caller"


def _complete(
    operation: Schema, handler: HTTPRouteHandler, path: str, method: str, found: dict[str, Schema]
) -> None:
    right = _right(handler)
    operation["description"] = f"{operation['description']}\n\n{_RIGHTS[right]}"
    operation["security"] = [] if right == "open" else [{"token": []}]
    writes = method != "get" and handler.opt.get(BODY) != "search"
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        parameter["schema"] = _present(parameter["schema"])
        tidy(parameter)
    if writes:
        parameters.append(_KEY)
    with_msgpack = not handler.opt.get(JSON_ONLY)
    body = operation.get("requestBody")
    if body is not None:
        field = handler.parsed_data_field
        body["required"] = field is not None and not field.has_default
        plain = body["content"][_JSON]["schema"]
        body["content"][_JSON]["schema"] = inlined(plain, found)
        as_msgpack = packed(plain, found, sent=True)
        if with_msgpack and as_msgpack != plain:
            body["content"][_MSGPACK] = {"schema": inlined(as_msgpack, found)}
    responses = operation["responses"]
    responses.pop("400", None)  # Litestar's own
    headers: Schema = next(
        (each["headers"] for each in responses.values() if each.get("headers")), {}
    )
    for status, response in responses.items():
        _complete_response(response, int(status), headers, found, with_msgpack=with_msgpack)
    has_model = "{model_version}" in path
    problems = {
        400: path not in {"/health/live", "/health/ready"},
        401: right != "open",
        403: right != "open",
        404: "{" in path,
        409: writes or (has_model and path != "/models/{model_version}"),
        412: method == "patch" or any(each["name"] == "If-Match" for each in parameters),
        413: writes or body is not None,
        415: writes or body is not None,
        422: writes or has_model or bool(parameters),
        429: right != "open",
        500: True,
        503: right != "open",
    }
    for problem, given in problems.items():
        if given:
            reference = {"$ref": f"#/components/responses/{_name(problem)}"}
            responses.setdefault(str(problem), reference)
    operation["responses"] = dict(sorted(responses.items()))


def _present(schema: Schema) -> Schema:
    """The schema of a parameter where it is given: null is how handlers see that it is not."""
    types = schema.get("type")
    if isinstance(types, list):
        (only,) = (each for each in types if each != "null")
        return {**schema, "type": only, "enum": [each for each in schema["enum"] if each]}
    return {name: each for name, each in schema.items() if name != "oneOf"} | (
        schema["oneOf"][0] if "oneOf" in schema else {}
    )


def _complete_response(
    response: Schema, status: int, headers: Schema, found: dict[str, Schema], *, with_msgpack: bool
) -> None:
    response["description"] = HTTPStatus(status).phrase
    response["headers"] = {"X-Request-Id": _REQUEST_ID} | {
        name: {
            "description": header["description"],
            "required": True,
            "schema": HEADER_SCHEMAS[name],
        }
        for name, header in headers.items()
    }
    content = response.get("content", {})
    if status == HTTPStatus.NO_CONTENT:
        content.clear()
    if _JSON in content and with_msgpack:
        content[_MSGPACK] = {"schema": packed(content[_JSON]["schema"], found, sent=False)}
    if EVENT_STREAM in content:
        # Without a type: to generators it is text of any kind, and no JSON.
        content[EVENT_STREAM] = {"schema": {"contentMediaType": EVENT_STREAM}}


def _problem_responses() -> dict[str, Schema]:
    slugs: dict[int, set[str]] = {}
    for kind in TABLE.values():
        slugs.setdefault(kind.status, set()).add(kind.slug)
    responses: dict[str, Schema] = {}
    for status, found in sorted(slugs.items()):
        response: Schema = {
            "description": f"{HTTPStatus(status).phrase}: "
            + ", ".join(f"`{slug}`" for slug in sorted(found)),
            "headers": {"X-Request-Id": _REQUEST_ID},
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
            seconds = {"description": "Seconds.", "schema": {"type": "integer"}}
            response["headers"] |= {"Retry-After": seconds}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            response["headers"] |= _RATE
        if status == HTTPStatus.UNAUTHORIZED:
            response["headers"] |= {"WWW-Authenticate": {"schema": {"type": "string"}}}
        responses[_name(status)] = response
    return responses


def _name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")
