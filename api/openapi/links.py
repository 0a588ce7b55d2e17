"""Which answers lead where: OpenAPI links, so that programs go on with ids that exist."""

import re
from typing import Final

from api.openapi.schemas import Schema

Route = tuple[str, str]
"""Path and method, the latter in lower case."""

_MODEL: Final = "/models/{model_version}"
_EMBEDDING: Final = f"{_MODEL}/embeddings/{{product_id}}"
_NEIGHBORS: Final = f"{_MODEL}/products/{{product_id}}/neighbors"
_REPORT: Final = "/reports/{report_id}"
_USER: Final = "/users/{user_id}"

_TARGETS: Final[dict[str, Route]] = {
    "model": (_MODEL, "get"),
    "embeddings": (f"{_MODEL}/embeddings", "get"),
    "embedding": (_EMBEDDING, "get"),
    "delete_embedding": (_EMBEDDING, "delete"),
    "neighbors": (_NEIGHBORS, "get"),
    "builds": (f"{_MODEL}/builds", "get"),
    "request_build": (f"{_MODEL}/builds", "post"),
    "build": ("/builds/{build_id}", "get"),
    "imports": (f"{_MODEL}/imports", "get"),
    "import": ("/imports/{import_id}", "get"),
    "matrix": (f"{_MODEL}/matrix", "get"),
    "user": (_USER, "get"),
    "change_user": (_USER, "patch"),
    "delete_user": (_USER, "delete"),
    "report": (_REPORT, "get"),
    "change_report": (_REPORT, "patch"),
    "delete_report": (_REPORT, "delete"),
}
"""Routes by the names of the links to them."""

_NEIGHBOR: Final = {"path.product_id": "$response.body#/neighbors/0/product_id"}
_VERSION: Final = {"header.If-Match": "$response.header.ETag"}
_ANY_REPORT: Final = "report change_report delete_report"

LINKS: Final[dict[Route, tuple[str, dict[str, str]]]] = {
    ("/models", "get"): (
        "model embeddings builds matrix",
        {"path.model_version": "$response.body#/items/0/model_version"},
    ),
    (_MODEL, "get"): (
        "embeddings builds build",
        {"path.build_id": "$response.body#/current_build/build_id"},
    ),
    (f"{_MODEL}/search", "post"): (
        "neighbors build",
        _NEIGHBOR | {"path.build_id": "$response.body#/index/build_id"},
    ),
    (_NEIGHBORS, "get"): ("neighbors embedding", _NEIGHBOR),
    (_EMBEDDING, "put"): ("embedding delete_embedding request_build", {}),
    (f"{_MODEL}/embeddings:batch", "post"): ("embeddings request_build", {}),
    (f"{_MODEL}/embeddings", "get"): (
        "embedding neighbors",
        {"path.product_id": "$response.body#/items/0/product_id"},
    ),
    (f"{_MODEL}/builds", "post"): ("build builds", {"path.build_id": "$response.body#/build_id"}),
    (f"{_MODEL}/builds", "get"): ("build", {"path.build_id": "$response.body#/items/0/build_id"}),
    ("/builds/{build_id}", "get"): (
        "model",
        {"path.model_version": "$response.body#/model_version"},
    ),
    (f"{_MODEL}/imports", "post"): (
        "import imports",
        {"path.import_id": "$response.body#/import_id"},
    ),
    (f"{_MODEL}/imports", "get"): (
        "import",
        {"path.import_id": "$response.body#/items/0/import_id"},
    ),
    ("/users", "post"): (
        "user change_user delete_user",
        {"path.user_id": "$response.body#/user_id"},
    ),
    ("/reports", "post"): (_ANY_REPORT, _VERSION | {"path.report_id": "$response.body#/id"}),
    ("/reports", "get"): (_ANY_REPORT, {"path.report_id": "$response.body#/items/0/id"}),
    (_REPORT, "get"): ("change_report delete_report", _VERSION),
    (_REPORT, "patch"): (_ANY_REPORT, _VERSION),
}
"""The names of the links of a route's success, and where their parameters come from: what is not
named is the request's own."""


def links(route: Route, paths: Schema) -> Schema:
    """The links of a route's success, as the document has them."""
    names, given = LINKS.get(route, ("", {}))
    own = {f"path.{name}": f"$request.path.{name}" for name in _parameters(route[0])}
    found = {}
    for name in names.split():
        path, method = _TARGETS[name]
        takes = {f"path.{each}" for each in _parameters(path)}
        if method != "get":
            takes.add("header.If-Match")
        found[name] = {
            "operationId": paths[path][method]["operationId"],
            "parameters": {k: v for k, v in (own | given).items() if k in takes},
        }
    return found


def _parameters(path: str) -> list[str]:
    return re.findall(r"{(\w+)}", path)
