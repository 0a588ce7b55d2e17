"""Search and neighbours: the hot path.

`search` and `neighbors` answer a call in either lane; the controller is how the reference and the
router know of them.
"""

import asyncio
from math import isfinite
from typing import Any, Final

from litestar import Controller, Request, Response, get, post
from litestar.params import FromPath
from msgspec import UNSET

from api.bodies import Shape
from api.calls import Call, call_in, response
from api.paths import unescape
from api.problems import Reply, invalid
from api.queries import Query
from api.schemas import Found, FoundMany, LargeSearchBody, Neighbor, PackedSearchBody, SearchBody
from api.serving.loaded import LoadedIndex
from api.vectors import LARGE_BYTES, Wire, check_all, floats
from core import watermarks
from core.errors import Invalid, NotFound
from core.settings import Limits
from core.usecases.identifiers import validate_product_id
from core.vectors.arrays import Floats

SEARCH_ROUTE: Final = "/models/{model_version}/search"
NEIGHBORS_ROUTE: Final = "/models/{model_version}/products/{product_id}/neighbors"

_Body = SearchBody | LargeSearchBody | PackedSearchBody
_small: Final[Shape[_Body]] = Shape(SearchBody, PackedSearchBody)
_large: Final[Shape[_Body]] = Shape(LargeSearchBody, PackedSearchBody)


async def search(call: Call, model_version: str) -> Reply:
    """Answers a search.

    Raises:
        Unreadable: the body or the watermark cannot be read.
        Invalid: they do not hold.
        NotFound: there is no such model version, or no such product in its index.
        NoIndex: the model version has no published build.
        NotYetVisible: the index does not reflect `min_watermark`.
    """
    data = await call.body()
    limits = call.context.settings.limits
    if len(data) > LARGE_BYTES:
        body, vectors = await _in_thread(call, _read, data, limits, call.msgpack_in)
    else:
        body, vectors = _read(data, limits, call.msgpack_in)
    after = watermarks.decode(body.min_watermark) if body.min_watermark else None
    loaded = await call.context.catalogue.wanted(model_version, after)
    many = body.vectors is not UNSET
    row: int | None = None
    if isinstance(body.product_id, str):
        row = row_of(loaded, body.product_id, limits)
        vectors = [loaded.vector(row)]
    else:
        names = [f"vectors[{i}]" for i in range(len(vectors))] if many else ["vector"]
        check_all(vectors, names, loaded.metric, loaded.dimension, limits)
    if loaded.takes_long(len(vectors), body.k, exact=body.exact, excluded=len(body.exclude)):
        lists = await _in_thread(call, _find, loaded, vectors, body, row)
    else:
        lists = _find(loaded, vectors, body, row)
    used = loaded.used(exact=body.exact)
    if many:
        return call.reply(FoundMany(results=lists, index=used))
    return call.reply(Found(neighbors=lists[0], index=used))


async def neighbors(call: Call, model_version: str, product_id: str) -> Reply:
    """Answers with the neighbours of a product, from the matrix where it has enough of them.

    Raises:
        Invalid: `k` does not hold.
        NotFound: there is no such model version, or no such product in its index.
        NoIndex: the model version has no published build.
    """
    limits = call.context.settings.limits
    k = Query(call.query).integer("k", default=10, minimum=1, maximum=limits.k_max)
    loaded = await call.context.catalogue.wanted(model_version)
    row = row_of(loaded, product_id, limits)
    found = loaded.neighbors(row, k)
    if found is None:
        if loaded.takes_long(1, k, exact=False):
            near = await _in_thread(call, loaded.near_row, row, k)
        else:
            near = loaded.near_row(row, k)
        return call.reply(Found(neighbors=near, index=loaded.used(exact=False)))
    return call.reply(Found(neighbors=found, index=loaded.used_matrix))


def row_of(loaded: LoadedIndex, product_id: str, limits: Limits) -> int:
    """The product's row in the index.

    Raises:
        Invalid: it is no product id.
        NotFound: the index has no such product.
    """
    row = loaded.row_of(product_id)
    if row is None:
        validate_product_id(product_id, limits.product_id_bytes_max)
        raise NotFound(f"the index of {loaded.model_version} has no product {product_id!r}")
    return row


def _read(data: bytes, limits: Limits, msgpack: bool) -> tuple[_Body, list[Floats]]:  # noqa: FBT001
    """The body, checked as far as it can be without an index, and its vectors."""
    body = (_large if len(data) > LARGE_BYTES else _small).decode(data, msgpack=msgpack)
    given = [
        name for name in ("vector", "product_id", "vectors") if getattr(body, name) is not UNSET
    ]
    if len(given) != 1:
        raise invalid(
            given[-1] if given else "vector",
            "is one of `vector`, `product_id` and `vectors`: send exactly one of them",
        )
    _check_options(body, limits)
    wires: list[tuple[str, Wire]] = []
    if body.vector is not UNSET:
        wires.append(("vector", body.vector))
    elif body.vectors is not UNSET:
        wires += ((f"vectors[{i}]", raw) for i, raw in enumerate(body.vectors))
    return body, [floats(wire, limits, at, msgpack=msgpack) for at, wire in wires]


def _check_options(body: _Body, limits: Limits) -> None:
    if not 1 <= body.k <= limits.k_max:
        raise invalid("k", f"must be from 1 to {limits.k_max}")
    if len(body.exclude) > limits.exclude_max:
        raise invalid("exclude", f"has {len(body.exclude)} ids, the most is {limits.exclude_max}")
    if body.min_score is not None and not isfinite(body.min_score):
        raise invalid("min_score", "must be a finite number")
    if body.vectors is not UNSET:
        count = len(body.vectors)
        if not 1 <= count <= limits.vectors_max:
            raise invalid("vectors", f"has {count} vectors, and takes 1 to {limits.vectors_max}")
        if count * body.k > limits.vectors_times_k_max:
            raise Invalid(
                f"{count} vectors times k of {body.k} is over {limits.vectors_times_k_max}",
                invalid("k", f"times vectors is over {limits.vectors_times_k_max}").errors,
            )


def _find(
    loaded: LoadedIndex, vectors: list[Floats], body: _Body, row: int | None
) -> list[list[Neighbor]]:
    return loaded.search(
        vectors,
        body.k,
        exact=body.exact,
        exclude=body.exclude,
        without_row=row,
        min_score=body.min_score,
    )


async def _in_thread(call: Call, work: Any, *arguments: Any) -> Any:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(call.context.threads, work, *arguments)


class SearchController(Controller):
    """The same, behind the router."""

    tags = ("search",)

    @post(
        "/models/{model_version:str}/search",
        status_code=200,
        summary="Search by vector or product",
    )
    async def search(
        self, request: Request[Any, Any, Any], model_version: FromPath[str]
    ) -> Response[Found | FoundMany]:
        """The nearest products to a vector, to each of several vectors, or to a product.

        Send exactly one of `vector`, `product_id` (itself not among the results) and `vectors`.
        """
        return response(await search(call_in(request), unescape(model_version)))

    @get(
        "/models/{model_version:str}/products/{product_id:str}/neighbors",
        summary="Neighbours of a product",
    )
    async def neighbors(
        self,
        request: Request[Any, Any, Any],
        model_version: FromPath[str],
        product_id: FromPath[str],
    ) -> Response[Found]:
        """The nearest other products, from the precomputed matrix where it has enough of them."""
        call = call_in(request)
        return response(await neighbors(call, unescape(model_version), unescape(product_id)))
