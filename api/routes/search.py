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
from api.serving.view import View
from api.vectors import LARGE_BYTES, Wire, check_all, count_parts, floats
from core.errors import Invalid, NoIndex, NotFound, NotYetVisible
from core.settings import Limits
from core.usecases.identifiers import validate_product_id
from core.vectors.arrays import Floats
from core.watermarks import Presented

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
        body, vectors, after = await _in_thread(call, _read, call, data)
    else:
        body, vectors, after = _read(call, data)
    many = body.vectors is not UNSET
    names = [f"vectors[{i}]" if many else "vector" for i in range(len(vectors))]
    try:
        view = await call.context.catalogue.wanted(model_version)
    except (NotFound, NoIndex) as absent:
        # What the body itself lacks is said first, as the contract has it.
        if isinstance(body.product_id, str):
            validate_product_id(body.product_id, limits.product_id_bytes_max)
        if isinstance(absent, NoIndex):
            model = await call.context.resources.models.known_model(model_version)
            check_all(vectors, names, model.metric, model.dimension, limits)
        else:
            check_all(vectors, names, "ip", None, limits)
        raise
    if body.product_id is UNSET:
        check_all(vectors, names, view.metric, view.dimension, limits)
    if after is not None and not view.reflects(after.watermark):
        view = await _reflecting(call, model_version, after)
    place: int | None = None
    if isinstance(body.product_id, str):
        place = place_of(view, body.product_id, limits)
        vectors = [view.vector(place)]
    if view.takes_long(len(vectors), body.k, exact=body.exact, excluded=len(body.exclude)):
        lists = await _in_thread(call, _find, view, vectors, body, place)
    else:
        lists = _find(view, vectors, body, place)
    used = view.used(exact=body.exact)
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
    try:
        view = await call.context.catalogue.wanted(model_version)
    except (NotFound, NoIndex):
        validate_product_id(product_id, limits.product_id_bytes_max)
        raise
    place = place_of(view, product_id, limits)
    if view.beside_takes_long:
        found = await _in_thread(call, view.neighbors, place, k)
    else:
        found = view.neighbors(place, k)
    if found is None:
        if view.takes_long(1, k, exact=False):
            near = await _in_thread(call, view.near, place, k)
        else:
            near = view.near(place, k)
        return call.reply(Found(neighbors=near, index=view.used(exact=False)))
    return call.reply(Found(neighbors=found, index=view.used_matrix))


async def _reflecting(call: Call, model_version: str, after: Presented) -> View:
    """What answers once it reflects a write. Only a watermark that a write answered is waited for.

    Raises:
        NotYetVisible: it did not in time, or the watermark is not authentic.
    """
    if not after.authentic:
        raise NotYetVisible(f"the index of {model_version} does not reflect this write")
    return await call.context.catalogue.wanted(model_version, after.watermark)


def place_of(view: View, product_id: str, limits: Limits) -> int:
    """Where the product is, for the view's own methods.

    Raises:
        Invalid: it is no product id.
        NotFound: there is no such product in the index, or no longer.
    """
    place = view.place_of(product_id)
    if place is None:
        validate_product_id(product_id, limits.product_id_bytes_max)
        raise NotFound(f"the index of {view.model_version} has no product {product_id!r}")
    return place


def _read(call: Call, data: bytes) -> tuple[_Body, list[Floats], Presented | None]:
    """The body, checked as far as it can be without an index, its vectors and its watermark."""
    limits, msgpack = call.context.settings.limits, call.msgpack_in
    if len(data) > LARGE_BYTES and not msgpack:
        ids_bytes = limits.exclude_max * limits.product_id_bytes_max
        count_parts(data, limits.vectors_max * limits.dimension_max + ids_bytes)
    body = (_large if len(data) > LARGE_BYTES else _small).decode(data, msgpack=msgpack)
    after = None
    if body.min_watermark is not None:  # what cannot be read goes before what does not hold
        watermarks = call.context.resources.watermarks
        after = watermarks.decode(body.min_watermark, limits.product_id_bytes_max)
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
    return body, [floats(wire, limits, at, msgpack=msgpack) for at, wire in wires], after


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
    view: View, vectors: list[Floats], body: _Body, place: int | None
) -> list[list[Neighbor]]:
    return view.search(
        vectors,
        body.k,
        exact=body.exact,
        exclude=body.exclude,
        without=place,
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
