"""Which answers lead where: OpenAPI links, so that programs go on with ids that exist."""

from typing import Final

import msgspec

from api.openapi.schemas import Schema

Route = tuple[str, str]
"""Path and method, the latter in lower case."""

_MODEL: Final = "/models/{model_version}"
_BUILD: Final = ("/builds/{build_id}", "get")
_NEIGHBORS: Final = (f"{_MODEL}/products/{{product_id}}/neighbors", "get")
_REPORT: Final = "/reports/{report_id}"
_USER: Final = "/users/{user_id}"
_EMBEDDING: Final = f"{_MODEL}/embeddings/{{product_id}}"

_SAME_MODEL: Final = {"path.model_version": "$request.path.model_version"}
_SAME_PRODUCT: Final = _SAME_MODEL | {"path.product_id": "$request.path.product_id"}
_FIRST_PRODUCT: Final = _SAME_MODEL | {"path.product_id": "$response.body#/items/0/product_id"}
_FIRST_MODEL: Final = {"path.model_version": "$response.body#/items/0/model_version"}
_NEW_REPORT: Final = {"path.report_id": "$response.body#/id"}
_SAME_REPORT: Final = {"path.report_id": "$request.path.report_id"}
_FIRST_REPORT: Final = {"path.report_id": "$response.body#/items/0/id"}
_THIS_VERSION: Final = {"header.If-Match": "$response.header.ETag"}
_THIS_USER: Final = {"path.user_id": "$response.body#/user_id"}


class Link(msgspec.Struct, frozen=True):
    """From a success to a request that it makes possible."""

    target: Route
    parameters: dict[str, str]


LINKS: Final[dict[Route, dict[str, Link]]] = {
    ("/models", "get"): {
        "model": Link((_MODEL, "get"), _FIRST_MODEL),
        "embeddings": Link((f"{_MODEL}/embeddings", "get"), _FIRST_MODEL),
        "builds": Link((f"{_MODEL}/builds", "get"), _FIRST_MODEL),
        "matrix": Link((f"{_MODEL}/matrix", "get"), _FIRST_MODEL),
    },
    (_MODEL, "get"): {
        "embeddings": Link((f"{_MODEL}/embeddings", "get"), _SAME_MODEL),
        "builds": Link((f"{_MODEL}/builds", "get"), _SAME_MODEL),
        "build": Link(_BUILD, {"path.build_id": "$response.body#/current_build/build_id"}),
    },
    (f"{_MODEL}/search", "post"): {
        "neighbors": Link(
            _NEIGHBORS,
            _SAME_MODEL | {"path.product_id": "$response.body#/neighbors/0/product_id"},
        ),
        "build": Link(_BUILD, {"path.build_id": "$response.body#/index/build_id"}),
    },
    _NEIGHBORS: {
        "neighbors": Link(
            _NEIGHBORS,
            _SAME_MODEL | {"path.product_id": "$response.body#/neighbors/0/product_id"},
        ),
        "embedding": Link((_EMBEDDING, "get"), _SAME_PRODUCT),
    },
    (_EMBEDDING, "put"): {
        "embedding": Link((_EMBEDDING, "get"), _SAME_PRODUCT),
        "delete": Link((_EMBEDDING, "delete"), _SAME_PRODUCT),
        "build": Link((f"{_MODEL}/builds", "post"), _SAME_MODEL),
    },
    (f"{_MODEL}/embeddings:batch", "post"): {
        "embeddings": Link((f"{_MODEL}/embeddings", "get"), _SAME_MODEL),
        "build": Link((f"{_MODEL}/builds", "post"), _SAME_MODEL),
    },
    (f"{_MODEL}/embeddings", "get"): {
        "embedding": Link((_EMBEDDING, "get"), _FIRST_PRODUCT),
        "neighbors": Link(_NEIGHBORS, _FIRST_PRODUCT),
    },
    (f"{_MODEL}/builds", "post"): {
        "build": Link(_BUILD, {"path.build_id": "$response.body#/build_id"}),
        "builds": Link((f"{_MODEL}/builds", "get"), _SAME_MODEL),
    },
    (f"{_MODEL}/builds", "get"): {
        "build": Link(_BUILD, {"path.build_id": "$response.body#/items/0/build_id"}),
    },
    _BUILD: {
        "model": Link((_MODEL, "get"), {"path.model_version": "$response.body#/model_version"}),
    },
    ("/users", "post"): {
        "user": Link((_USER, "get"), _THIS_USER),
        "change": Link((_USER, "patch"), _THIS_USER),
        "delete": Link((_USER, "delete"), _THIS_USER),
    },
    ("/reports", "post"): {
        "report": Link((_REPORT, "get"), _NEW_REPORT),
        "change": Link((_REPORT, "patch"), _NEW_REPORT | _THIS_VERSION),
        "delete": Link((_REPORT, "delete"), _NEW_REPORT | _THIS_VERSION),
    },
    ("/reports", "get"): {
        "report": Link((_REPORT, "get"), _FIRST_REPORT),
        "change": Link((_REPORT, "patch"), _FIRST_REPORT),
        "delete": Link((_REPORT, "delete"), _FIRST_REPORT),
    },
    (_REPORT, "get"): {
        "change": Link((_REPORT, "patch"), _SAME_REPORT | _THIS_VERSION),
        "delete": Link((_REPORT, "delete"), _SAME_REPORT | _THIS_VERSION),
    },
    (_REPORT, "patch"): {
        "report": Link((_REPORT, "get"), _SAME_REPORT),
        "change": Link((_REPORT, "patch"), _SAME_REPORT | _THIS_VERSION),
        "delete": Link((_REPORT, "delete"), _SAME_REPORT | _THIS_VERSION),
    },
}


def links(route: Route, paths: Schema) -> Schema:
    """The links of a route's success, as the document has them."""
    return {name: _link(link, paths) for name, link in LINKS.get(route, {}).items()}


def _link(link: Link, paths: Schema) -> Schema:
    path, method = link.target
    operation_id = paths[path][method]["operationId"]
    return {"operationId": operation_id, "parameters": link.parameters}
