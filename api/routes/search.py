"""Search and neighbours: the hot path.

`search` and `neighbors` answer a call in either lane; the controller is how the reference and the
router know of them.
"""

from math import isfinite
from typing import Any, Final, TypeVar

from litestar import Controller, Request, Response, get, post
from litestar.params import FromPath
from msgspec import UNSET

from api.admission.executor import Steps, finished, one_step
from api.context import Context
from api.http.context import Call, call_in, response
from api.http.guards import BODY
from api.http.paths import unescape
from api.http.problems import Reply, invalid
from api.http.queries import Query
from api.serving.cost import INLINE_US_MAX
from api.serving.hits import Hits
from api.serving.segment import Provenance
from api.serving.snapshot import RowRef, Snapshot
from api.wire.decoding import Shape, whole
from api.wire.schemas import (
    Found,
    FoundMany,
    IndexUsed,
    LargeSearchBody,
    Neighbor,
    PackedSearchBody,
    SearchBody,
)
from api.wire.vectors import (
    DECODED_AT_ONCE,
    LARGE_BYTES,
    Wire,
    check_all,
    count_parts,
    floats,
)
from core.errors import Invalid, ModelBeingDeleted, NoIndex, NotFound, NotYetVisible
from core.identifiers import validate_product_id
from core.settings import Limits
from core.vectors.arrays import Floats
from core.watermarks import Presented

SEARCH_ROUTE: Final = "/models/{model_version}/search"
NEIGHBORS_ROUTE: Final = "/models/{model_version}/products/{product_id}/neighbors"

T = TypeVar("T")
_Body = SearchBody | LargeSearchBody | PackedSearchBody
_small: Final[Shape[_Body]] = Shape(SearchBody, PackedSearchBody)
_large: Final[Shape[_Body]] = Shape(LargeSearchBody, PackedSearchBody)


async def search(call: Call, model_version: str) -> Reply:
    """Answers a search.

    Raises:
        Unreadable: the body or the watermark cannot be read.
        Invalid: they do not hold.
        NotFound: there is no such model version, or no such product in its index.
        ModelBeingDeleted: the model version is marked for deletion.
        NoIndex: the model version has no published build.
        NotYetVisible: the index does not reflect `min_watermark`.
    """
    context = call.context
    await call.begin(context.admission.reads, _body_bytes_max(context, model_version))
    limits = context.settings.limits
    if len(call.data) > LARGE_BYTES:
        body, vectors, after = await context.decoding.run(call.caller.user_id, _reading(call))
    else:
        body, vectors, after = finished(_reading(call))
    many = body.vectors is not UNSET
    names = [f"vectors[{i}]" if many else "vector" for i in range(len(vectors))]
    try:
        snapshot = await _snapshot(call, model_version)
    except (NotFound, NoIndex, ModelBeingDeleted) as absent:
        # What the body itself lacks is said first, as the contract has it.
        if isinstance(body.product_id, str):
            validate_product_id(body.product_id, limits.product_id_bytes_max)
        if isinstance(absent, NoIndex):
            model = await context.resources.models.known_model(model_version)
            check_all(vectors, names, model.metric, model.dimension, limits)
        else:
            check_all(vectors, names, "ip", None, limits)
        raise
    if body.product_id is UNSET:
        check_all(vectors, names, snapshot.metric, snapshot.dimension, limits)
    if after is not None and not snapshot.reflects(after.watermark):
        snapshot = await _reflecting(call, model_version, after)
        check_all(
            vectors, names, snapshot.metric, snapshot.dimension, limits
        )  # it may be made anew
    itself: RowRef | None = None
    if isinstance(body.product_id, str):
        itself = find(snapshot, body.product_id, limits)
        vectors = [snapshot.vector(itself)]
    cost_us = snapshot.search_us(
        len(vectors), int(body.k), exact=body.exact, excluded=len(body.exclude)
    )
    steps = _searching(snapshot, vectors, body, itself)
    hits = finished(steps) if cost_us <= INLINE_US_MAX else await _in_turn(call, cost_us, steps)
    index = _index_used(snapshot.exact_provenance if body.exact else snapshot.provenance)
    if many:
        return call.reply(FoundMany(results=[_neighbors(each) for each in hits], index=index))
    return call.reply(Found(neighbors=_neighbors(hits[0]), index=index))


async def neighbors(call: Call, model_version: str, product_id: str) -> Reply:
    """Answers with the neighbours of a product, from the matrix where it has enough of them.

    Raises:
        Invalid: `k` does not hold.
        NotFound: there is no such model version, or no such product in its index.
        ModelBeingDeleted: the model version is marked for deletion.
        NoIndex: the model version has no published build.
    """
    call.enter(call.context.admission.reads)
    limits = call.context.settings.limits
    k = Query(call.query).integer("k", default=10, minimum=1, maximum=limits.k_max)
    try:
        snapshot = await _snapshot(call, model_version)
    except (NotFound, NoIndex, ModelBeingDeleted):
        validate_product_id(product_id, limits.product_id_bytes_max)
        raise
    ref = find(snapshot, product_id, limits)
    provenance = snapshot.matrix_provenance
    if snapshot.matrix_us <= INLINE_US_MAX:
        hits = snapshot.matrix_neighbors(ref, k)
    else:
        hits = await _in_turn(call, snapshot.matrix_us, one_step(snapshot.matrix_neighbors, ref, k))
    if hits is None:
        provenance, cost_us = snapshot.provenance, snapshot.search_us(1, k)
        if cost_us <= INLINE_US_MAX:
            hits = snapshot.search_near(ref, k)
        else:
            hits = await _in_turn(call, cost_us, one_step(snapshot.search_near, ref, k))
    return call.reply(Found(neighbors=_neighbors(hits), index=_index_used(provenance)))


def _neighbors(hits: Hits) -> list[Neighbor]:
    return [Neighbor(*pair) for pair in zip(hits.product_ids, hits.scores, strict=True)]


def _index_used(provenance: Provenance) -> IndexUsed:
    return IndexUsed(
        build_id=provenance.build_id,
        built_at=provenance.built_at,
        recall=provenance.recall,
        exact=provenance.exact,
        watermark=provenance.watermark,
        fresh=provenance.fresh,
    )


async def _reflecting(call: Call, model_version: str, after: Presented) -> Snapshot:
    """What answers once it reflects a write. Only a watermark that a write answered is waited for.

    Raises:
        NotYetVisible: it did not in time, or the watermark is not authentic.
    """
    if not after.authentic:
        raise NotYetVisible(f"the index of {model_version} does not reflect this write")
    admission = call.context.admission
    with admission.one_of(admission.waits, call.caller.user_id):
        return await call.context.registry.snapshot(model_version, after.watermark)


async def _snapshot(call: Call, model_version: str) -> Snapshot:
    """What answers for a model version.

    Raises:
        Invalid, NotFound, NoIndex, Unavailable: as `IndexRegistry.snapshot` says.
    """
    registry = call.context.registry
    snapshot = registry.current(model_version)
    if snapshot is not None:
        return snapshot
    admission = call.context.admission  # whether there is such a model version is read
    with admission.one_of(admission.calls, call.caller.user_id):
        return await registry.snapshot(model_version)


def _body_bytes_max(context: Context, model_version: str) -> int:
    snapshot = context.registry.current(model_version)
    limits = context.body_limits
    return limits.search if snapshot is None else limits.search_of(snapshot.dimension)


def find(snapshot: Snapshot, product_id: str, limits: Limits) -> RowRef:
    """Where the product is in the snapshot.

    Raises:
        Invalid: it is no product id.
        NotFound: there is no such product in the index, or no longer.
    """
    ref = snapshot.find(product_id)
    if ref is None:
        validate_product_id(product_id, limits.product_id_bytes_max)
        raise NotFound(f"the index of {snapshot.model_version} has no product {product_id!r}")
    return ref


def _reading(call: Call) -> Steps[tuple[_Body, list[Floats], Presented | None]]:
    """The body, checked as far as it can be without an index, its vectors and its watermark."""
    data, limits, msgpack = call.data, call.context.settings.limits, call.msgpack_in
    if len(data) > LARGE_BYTES and not msgpack:
        ids_bytes = limits.exclude_max * limits.product_id_bytes_max
        yield from count_parts(data, limits.vectors_max * limits.dimension_max + ids_bytes)
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
    vectors: list[Floats] = []
    for place, (at, wire) in enumerate(wires):
        if place and place % DECODED_AT_ONCE == 0:
            yield 0
        vectors.append(floats(wire, limits, at, msgpack=msgpack))
    return body, vectors, after


def _check_options(body: _Body, limits: Limits) -> None:
    body.k = whole(body.k, "k")
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


def _searching(
    snapshot: Snapshot, vectors: list[Floats], body: _Body, itself: RowRef | None
) -> Steps[list[Hits]]:
    exclude = [ref for ref in map(snapshot.find, body.exclude) if ref is not None]
    if itself is not None:
        exclude.append(itself)
    hits: list[Hits] = []
    step = snapshot.segment.cost.step_vectors
    for start in range(0, len(vectors), step):
        if start:
            yield 0
        hits += snapshot.search(
            vectors[start : start + step],
            int(body.k),
            exact=body.exact,
            exclude=exclude,
            min_score=body.min_score,
        )
    return hits


async def _in_turn(call: Call, cost_us: float, steps: Steps[T]) -> T:
    """The result of a search that is too long for the event loop.

    Raises:
        OverShare: the caller has too much of that under way.
        Overloaded: all callers together have, or its turn did not come in time.
    """
    caller = call.caller.user_id
    with call.context.admission.large_search(caller, max(1, round(cost_us / 1000))):
        return await call.context.searching.run(caller, steps)


class SearchController(Controller):
    """The same, behind the router."""

    tags = ("search",)
    opt = {BODY: "search"}  # noqa: RUF012 - Litestar has no other place for it

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
