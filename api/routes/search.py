"""Search and neighbours: what answers them, whichever way a request comes.

`api.fast_path` calls `search` and `neighbors` without a router; the controller is for what that
leaves to Litestar, and for the OpenAPI document.
"""

import asyncio
from math import isfinite
from typing import Annotated, Any, Final, TypeVar, cast

from litestar import Controller, get, post
from litestar.enums import RequestEncodingType
from litestar.params import Body
from msgspec import UNSET

from api.admission.executor import Steps, finished, one_step
from api.http.context import RequestContext
from api.http.hooks import BODY
from api.http.parameters import FilterQuery, KQuery, ModelVersion, ProductIdPath
from api.http.request import ApiRequest
from api.serving.cost import INLINE_US_MAX
from api.serving.segment import Hits, Provenance
from api.serving.snapshot import Matching, RowRef, Snapshot
from api.wire.filters import filter_text, sent_filter
from api.wire.search import AnySearch, Found, FoundMany, IndexUsed, Neighbor, SearchBody
from api.wire.vectors import DECODED_AT_ONCE, Wire, check_all, floats
from core.attributes.filters import Filter
from core.errors import FieldError, Invalid, ModelBeingDeleted, NoIndex, NotFound, NotYetVisible
from core.identifiers import validate_product_id
from core.limits import K_MAX, VECTORS_TIMES_K_MAX
from core.vectors.arrays import Floats
from core.watermarks import Presented

K_DEFAULT: Final = 10

SearchData = Annotated[
    SearchBody[Any],
    Body(media_type=RequestEncodingType.JSON, schema_component_key=SearchBody.__name__),
]
T = TypeVar("T")


async def search(context: RequestContext, model_version: str, body: AnySearch) -> Found | FoundMany:
    """Answers a search.

    Raises:
        Unreadable: the watermark cannot be read.
        Invalid: the search is not valid.
        NotFound: there is no such model version, or no such product in its index.
        ModelBeingDeleted: the model version is marked for deletion.
        NoIndex: the model version has no published build.
        NotYetVisible: the index does not reflect `min_watermark`.
    """
    vectors, after, condition = await context.decode(_question(context, body))
    many = body.vectors is not UNSET
    names = [f"vectors[{i}]" if many else "vector" for i in range(len(vectors))]
    try:
        snapshot = await _snapshot(context, model_version)
    except (NotFound, NoIndex, ModelBeingDeleted) as absent:
        # What the body itself lacks is said first, as the contract has it.
        if isinstance(body.product_id, str):
            validate_product_id(body.product_id)
        if isinstance(absent, NoIndex):
            model = await context.app.resources.models.known_model(model_version)
            check_all(vectors, names, model.metric, model.dimension)
        else:
            check_all(vectors, names, "ip", None)
        raise
    if body.product_id is UNSET:
        check_all(vectors, names, snapshot.metric, snapshot.dimension)
    if after is not None and not snapshot.reflects(after.watermark):
        snapshot = await _reflecting(context, model_version, after)
        check_all(vectors, names, snapshot.metric, snapshot.dimension)  # it may be made anew
    itself: RowRef | None = None
    if isinstance(body.product_id, str):
        itself = _find(snapshot, body.product_id)
        vectors = [snapshot.vector(itself)]
    if condition is None:
        cost_us = snapshot.search_us(
            len(vectors), int(body.k), exact=body.exact, excluded=len(body.exclude)
        )
        hits = await _run(context, cost_us, _searching(snapshot, vectors, body, itself))
        provenance = snapshot.exact_provenance if body.exact else snapshot.provenance
    else:
        matching = await _matching(context, snapshot, condition)
        cost_us = snapshot.search_matching_us(
            len(vectors), int(body.k), matching, exact=body.exact, excluded=len(body.exclude)
        )
        steps = _searching_matching(snapshot, vectors, body, itself, matching)
        hits, provenance = await _run(context, cost_us, steps)
    index = _index_used(provenance)
    if many:
        return FoundMany(results=[_neighbors(each) for each in hits], index=index)
    return Found(neighbors=_neighbors(hits[0]), index=index)


async def neighbors(
    context: RequestContext,
    model_version: str,
    product_id: str,
    k: int,
    condition: Filter | None = None,
) -> Found:
    """Answers with the neighbours of a product, from the matrix where it has enough of them.

    Those that match a filter are always searched for.

    Raises:
        Invalid: the product id is not valid.
        NotFound: there is no such model version, or no such product in its index.
        ModelBeingDeleted: the model version is marked for deletion.
        NoIndex: the model version has no published build.
    """
    try:
        snapshot = await _snapshot(context, model_version)
    except (NotFound, NoIndex, ModelBeingDeleted):
        validate_product_id(product_id)
        raise
    ref = _find(snapshot, product_id)
    if condition is not None:
        return await _neighbors_matching(context, snapshot, ref, k, condition)
    provenance = snapshot.matrix_provenance
    if snapshot.matrix_us <= INLINE_US_MAX:
        hits = snapshot.matrix_neighbors(ref, k)
    else:
        steps = one_step(snapshot.matrix_neighbors, ref, k)
        hits = await _run(context, snapshot.matrix_us, steps)
    if hits is None:
        provenance, cost_us = snapshot.provenance, snapshot.search_us(1, k)
        hits = await _run(context, cost_us, one_step(snapshot.search_near, ref, k))
    return Found(neighbors=_neighbors(hits), index=_index_used(provenance))


async def _neighbors_matching(
    context: RequestContext, snapshot: Snapshot, ref: RowRef, k: int, condition: Filter
) -> Found:
    matching = await _matching(context, snapshot, condition)
    cost_us = snapshot.search_matching_us(1, k, matching)
    steps = one_step(snapshot.search_near_matching, ref, k, matching)
    hits, provenance = await _run(context, cost_us, steps)
    return Found(neighbors=_neighbors(hits), index=_index_used(provenance))


async def _matching(context: RequestContext, snapshot: Snapshot, condition: Filter) -> Matching:
    """The products that match a filter; long evaluation is a search of its own."""
    steps = one_step(snapshot.matching, condition)
    return await _run(context, snapshot.matching_us(condition), steps)


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


async def _reflecting(context: RequestContext, model_version: str, after: Presented) -> Snapshot:
    """What reflects a write. Only a watermark that a write answered is waited for."""
    if not after.authentic:
        raise NotYetVisible(f"the index of {model_version} does not reflect this write")
    admission = context.app.admission
    with admission.slot(admission.waits, context.caller.user_id):
        return await context.app.registry.snapshot(model_version, after.watermark)


async def _snapshot(context: RequestContext, model_version: str) -> Snapshot:
    """What answers for a model version; raises what `IndexRegistry.snapshot` does."""
    registry = context.app.registry
    snapshot = registry.current(model_version)
    if snapshot is not None:
        return snapshot
    admission = context.app.admission  # whether there is such a model version is read
    with admission.slot(admission.calls, context.caller.user_id):
        return await registry.snapshot(model_version)


def _find(snapshot: Snapshot, product_id: str) -> RowRef:
    """Where the product is in the snapshot; raises `Invalid` or `NotFound` where it is not."""
    ref = snapshot.find(product_id)
    if ref is None:
        validate_product_id(product_id)
        raise NotFound(f"the index of {snapshot.model_version} has no product {product_id!r}")
    return ref


def _question(
    context: RequestContext, body: AnySearch
) -> Steps[tuple[list[Floats], Presented | None, Filter | None]]:
    """Vectors, watermark and filter of a search, checked as far as it can be without an index."""
    after = None
    if body.min_watermark is not None:  # what cannot be read goes before what is not valid
        watermarks = context.app.resources.watermarks
        after = watermarks.decode(body.min_watermark)
    given = [
        name for name in ("vector", "product_id", "vectors") if getattr(body, name) is not UNSET
    ]
    if len(given) != 1:
        problem = "is one of `vector`, `product_id` and `vectors`: send exactly one of them"
        raise Invalid.of(FieldError(given[-1] if given else "vector", problem))
    _check_options(body)
    wires: list[tuple[str, Wire]] = []
    if body.vector is not UNSET:
        wires.append(("vector", body.vector))
    elif body.vectors is not UNSET:
        wires += ((f"vectors[{i}]", raw) for i, raw in enumerate(body.vectors))
    vectors: list[Floats] = []
    for number, (at, wire) in enumerate(wires):
        if number and number % DECODED_AT_ONCE == 0:
            yield 0
        vectors.append(floats(wire, at, msgpack=context.msgpack_in))
    condition = None
    if body.filter is not UNSET:
        condition = sent_filter(body.filter, msgpack=context.msgpack_in)
    return vectors, after, condition


def _check_options(body: AnySearch) -> None:
    if body.k % 1 or not 1 <= body.k <= K_MAX:
        raise Invalid.of(FieldError("k", f"must be a whole number from 1 to {K_MAX}"))
    if body.min_score is not None and not isfinite(body.min_score):
        raise Invalid.of(FieldError("min_score", "must be a finite number"))
    if body.vectors is not UNSET and len(body.vectors) * body.k > VECTORS_TIMES_K_MAX:
        raise Invalid(
            f"{len(body.vectors)} vectors times k of {body.k:g} is over {VECTORS_TIMES_K_MAX}",
            (FieldError("k", f"times vectors is over {VECTORS_TIMES_K_MAX}"),),
        )


def _searching(
    snapshot: Snapshot, vectors: list[Floats], body: AnySearch, itself: RowRef | None
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


def _searching_matching(
    snapshot: Snapshot,
    vectors: list[Floats],
    body: AnySearch,
    itself: RowRef | None,
    matching: Matching,
) -> Steps[tuple[list[Hits], Provenance]]:
    exclude = [ref for ref in map(snapshot.find, body.exclude) if ref is not None]
    if itself is not None:
        exclude.append(itself)
    hits: list[Hits] = []
    provenance = snapshot.exact_provenance
    for number, vector in enumerate(vectors):
        if number:
            yield 0
        found, used = snapshot.search_matching(
            [vector],
            int(body.k),
            matching,
            exact=body.exact,
            exclude=exclude,
            min_score=body.min_score,
        )
        hits += found
        provenance = min(provenance, used, key=lambda each: (each.recall, each.exact))
    return hits, provenance


async def _run(context: RequestContext, cost_us: float, steps: Steps[T]) -> T:
    """The result of a search, which runs in a thread where it is too long for the event loop.

    Before and after a short one the other requests in flight have a turn. So all that are ready
    are decoded, then all searched, then all encoded: code and index stay in the processor's caches
    meanwhile, which takes a fifth off the time of a search (decision record 0027).

    Raises what `Admission.large_search` and `FairExecutor.run` do.
    """
    if cost_us <= INLINE_US_MAX:
        if not context.app.admission.spare:
            return finished(steps)
        await asyncio.sleep(0)
        result = finished(steps)
        await asyncio.sleep(0)
        return result
    caller = context.caller.user_id
    with context.app.admission.large_search(caller, max(1, round(cost_us / 1000))):
        return await context.app.searching.run(caller, steps)


class SearchController(Controller):
    """Search and neighbours, behind the router."""

    tags = ("search",)
    opt = {BODY: "search"}  # noqa: RUF012 - Litestar has no other place for it

    @post(
        "/models/{model_version:str}/search", status_code=200, summary="Search by vector or product"
    )
    async def search(
        self, request: ApiRequest, model_version: ModelVersion, data: SearchData
    ) -> Found | FoundMany:
        """The nearest products to a vector, to each of several vectors, or to a product.

        Send exactly one of `vector`, `product_id` (itself not among the results) and `vectors`.
        """
        return await search(request.context, model_version, cast("AnySearch", data))

    @get(
        "/models/{model_version:str}/products/{product_id:str}/neighbors",
        summary="Neighbours of a product",
    )
    async def neighbors(
        self,
        request: ApiRequest,
        model_version: ModelVersion,
        product_id: ProductIdPath,
        k: KQuery = K_DEFAULT,
        condition: FilterQuery = None,
    ) -> Found:
        """The nearest other products, from the precomputed matrix where it has enough of them."""
        parsed = None if condition is None else filter_text(condition)
        return await neighbors(request.context, model_version, product_id, k, parsed)
