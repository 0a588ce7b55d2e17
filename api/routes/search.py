"""Search and neighbours: what answers them, whichever way a request comes.

`api.fast_path` calls `search` and `neighbors` without a router; the controller is for what that
leaves to Litestar, and for the OpenAPI document.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any, Final, cast

from litestar import Controller, get, post
from litestar.enums import RequestEncodingType
from litestar.params import Body
from msgspec import UNSET

from api.admission.executor import Steps, one_step
from api.http.context import RequestContext
from api.http.hooks import BODY
from api.http.parameters import FieldsQuery, FilterQuery, KQuery, ModelVersion, ProductIdPath
from api.http.request import ApiRequest
from api.routes.questions import ask
from api.routes.searching import (
    check_options,
    current_snapshot,
    describe,
    find,
    index_used,
    matching_products,
    run,
    snapshot_for,
    unavailable_attributes,
    watermark_of,
)
from api.serving.cost import INLINE_US_MAX
from api.serving.segment import Hits, Provenance
from api.serving.snapshot import Matching, RowRef, Snapshot
from api.wire.filters import filter_text, sent_filter
from api.wire.questions import field_names
from api.wire.search import AnySearch, Found, FoundGroups, FoundMany, Neighbor, SearchBody
from api.wire.vectors import DECODED_AT_ONCE, Wire, floats
from core.attributes.filters import Filter
from core.errors import ModelBeingDeleted, NoIndex, NotFound
from core.identifiers import validate_product_id
from core.vectors.arrays import Floats
from core.watermarks import Presented

K_DEFAULT: Final = 10

SearchData = Annotated[
    SearchBody[Any],
    Body(media_type=RequestEncodingType.JSON, schema_component_key=SearchBody.__name__),
]


async def search(
    context: RequestContext, model_version: str, body: AnySearch
) -> Found | FoundMany | FoundGroups:
    """Answers a search.

    Raises:
        Unreadable: the watermark cannot be read.
        Invalid: the search is not valid.
        NotFound: there is no such model version, or no such product in its index.
        ModelBeingDeleted: the model version is marked for deletion.
        NoIndex: the model version has no published build.
        NotYetVisible: the index does not reflect `min_watermark`.
    """
    if not body.is_plain:
        return await ask(context, model_version, body)
    vectors, after, condition = await context.decode(_question(context, model_version, body))
    many = body.vectors is not UNSET
    names = [f"vectors[{i}]" if many else "vector" for i in range(len(vectors))]
    snapshot = await snapshot_for(context, model_version, body, vectors, names, after)
    itself: RowRef | None = None
    if isinstance(body.product_id, str):
        itself = find(snapshot, body.product_id)
        vectors = [snapshot.vector(itself)]
    if condition is None:
        cost_us = snapshot.search_us(
            len(vectors), int(body.k), exact=body.exact, excluded=len(body.exclude)
        )
        hits = await run(context, cost_us, _searching(snapshot, vectors, body, itself))
        provenance = snapshot.exact_provenance if body.exact else snapshot.provenance
    else:
        matching = await matching_products(context, snapshot, condition)
        cost_us = snapshot.search_matching_us(
            len(vectors), int(body.k), matching, exact=body.exact, excluded=len(body.exclude)
        )
        steps = _searching_matching(snapshot, vectors, body, itself, matching)
        hits, provenance = await run(context, cost_us, steps)
    index = index_used(provenance)
    results = [_neighbors(each) for each in hits]
    if body.fields is not UNSET:
        await describe(context, snapshot, list(chain.from_iterable(results)), body.fields)
    return (
        FoundMany(results=results, index=index)
        if many
        else Found(neighbors=results[0], index=index)
    )


async def neighbors(
    context: RequestContext,
    model_version: str,
    product_id: str,
    k: int,
    condition: Filter | None = None,
    fields: Sequence[str] | None = None,
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
        snapshot = await current_snapshot(context, model_version)
    except (NotFound, NoIndex, ModelBeingDeleted):
        validate_product_id(product_id)
        raise
    ref = find(snapshot, product_id)
    if condition is None:
        found = await _neighbors_of(context, snapshot, ref, k)
    else:
        found = await _neighbors_matching(context, snapshot, ref, k, condition)
    if fields is not None:
        await describe(context, snapshot, found.neighbors, fields)
    return found


async def _neighbors_of(context: RequestContext, snapshot: Snapshot, ref: RowRef, k: int) -> Found:
    provenance = snapshot.matrix_provenance
    if snapshot.matrix_us <= INLINE_US_MAX:
        hits = snapshot.matrix_neighbors(ref, k)
    else:
        steps = one_step(snapshot.matrix_neighbors, ref, k)
        hits = await run(context, snapshot.matrix_us, steps)
    if hits is None:
        provenance, cost_us = snapshot.provenance, snapshot.search_us(1, k)
        hits = await run(context, cost_us, one_step(snapshot.search_near, ref, k))
    return Found(neighbors=_neighbors(hits), index=index_used(provenance))


async def _neighbors_matching(
    context: RequestContext, snapshot: Snapshot, ref: RowRef, k: int, condition: Filter
) -> Found:
    matching = await matching_products(context, snapshot, condition)
    cost_us = snapshot.search_matching_us(1, k, matching)
    steps = one_step(snapshot.search_near_matching, ref, k, matching)
    hits, provenance = await run(context, cost_us, steps)
    return Found(neighbors=_neighbors(hits), index=index_used(provenance))


def _neighbors(hits: Hits) -> list[Neighbor]:
    return [Neighbor(*pair) for pair in zip(hits.product_ids, hits.scores, strict=True)]


def _question(
    context: RequestContext, model_version: str, body: AnySearch
) -> Steps[tuple[list[Floats], Presented | None, Filter | None]]:
    """Vectors, watermark and filter of a search, checked as far as it can be without an index."""
    unavailable = unavailable_attributes(context, model_version)
    after = watermark_of(context, body)
    check_options(body, unavailable)
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
        msgpack = context.msgpack_in
        condition = sent_filter(body.filter, msgpack=msgpack, unavailable=unavailable)
    return vectors, after, condition


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


class SearchController(Controller):
    """Search and neighbours, behind the router."""

    tags = ("search",)
    opt = {BODY: "search"}  # noqa: RUF012 - Litestar has no other place for it

    @post(
        "/models/{model_version:str}/search", status_code=200, summary="Search by vector or product"
    )
    async def search(
        self, request: ApiRequest, model_version: ModelVersion, data: SearchData
    ) -> Found | FoundMany | FoundGroups:
        """The nearest products to a vector, each of several vectors, a product, or examples.

        Send exactly one of `vector`, `product_id` (itself not among the results), `recommend` (its
        examples not among them) and `vectors`.
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
        fields: FieldsQuery = None,
    ) -> Found:
        """The nearest other products, from the precomputed matrix where it has enough of them."""
        context = request.context
        unavailable = unavailable_attributes(context, model_version)
        parsed = None if condition is None else filter_text(condition, unavailable)
        names = None if fields is None else field_names(fields, unavailable)
        return await neighbors(context, model_version, product_id, k, parsed, names)
