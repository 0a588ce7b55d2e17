"""What the handlers of searches share: their options, the snapshot that answers, where it runs."""

import asyncio
from collections.abc import Collection, Sequence
from math import isfinite
from typing import Final, TypeVar

from msgspec import UNSET

from api.admission.executor import Steps, finished, one_step
from api.http.context import RequestContext
from api.serving.cost import INLINE_US_MAX
from api.serving.questions import attributes_us, chosen_attributes
from api.serving.segment import Provenance
from api.serving.snapshot import Matching, RowRef, Snapshot
from api.wire.questions import check_name
from api.wire.search import AnySearch, IndexUsed, Neighbor
from api.wire.vectors import check_all
from core.attributes.filters import Filter
from core.errors import FieldError, Invalid, ModelBeingDeleted, NoIndex, NotFound, NotYetVisible
from core.identifiers import validate_product_id
from core.limits import K_MAX, VECTORS_TIMES_K_MAX
from core.vectors.arrays import Floats
from core.watermarks import Presented

T = TypeVar("T")

_FORMS: Final = ("vector", "product_id", "recommend", "vectors")


def unavailable_attributes(context: RequestContext, model_version: str) -> Collection[str]:
    """The attributes that the caller may neither ask by nor get: those internal, unless a reader.

    They are as the models were last listed, about a second ago.
    """
    model = context.app.registry.known.get(model_version)
    if model is None or context.caller.reader:  # what was never listed does not answer either
        return ()
    return model.internal_attributes


def watermark_of(context: RequestContext, body: AnySearch) -> Presented | None:
    """The watermark that a search waits for. First, as what cannot be read goes before the invalid.

    Raises:
        Unreadable: it is no watermark.
    """
    if body.min_watermark is None:
        return None
    return context.app.resources.watermarks.decode(body.min_watermark)


def check_options(body: AnySearch, unavailable: Collection[str]) -> None:
    """Checks what a search has besides what is searched for.

    `unavailable` are the attributes that the caller may not get.

    Raises:
        Invalid: the search is not valid.
    """
    given = [name for name in _FORMS if getattr(body, name) is not UNSET]
    if len(given) != 1:
        problem = (
            "is one of `vector`, `product_id`, `recommend` and `vectors`: send exactly one of them"
        )
        raise Invalid.of(FieldError(given[-1] if given else "vector", problem))
    if body.k % 1 or not 1 <= body.k <= K_MAX:
        raise Invalid.of(FieldError("k", f"must be a whole number from 1 to {K_MAX}"))
    if body.min_score is not None and not isfinite(body.min_score):
        raise Invalid.of(FieldError("min_score", "must be a finite number"))
    if body.fields is not UNSET:
        for number, name in enumerate(body.fields):
            check_name(name, f"fields[{number}]", unavailable)
    if body.vectors is not UNSET and len(body.vectors) * body.k > VECTORS_TIMES_K_MAX:
        raise Invalid(
            f"{len(body.vectors)} vectors times k of {body.k:g} is over {VECTORS_TIMES_K_MAX}",
            (FieldError("k", f"times vectors is over {VECTORS_TIMES_K_MAX}"),),
        )


async def snapshot_for(
    context: RequestContext,
    model_version: str,
    body: AnySearch,
    vectors: Sequence[Floats],
    names: Sequence[str],
    after: Presented | None,
) -> Snapshot:
    """The snapshot that answers a search, and of which its vectors are.

    Args:
        context: The request.
        model_version: Where is searched.
        body: The search.
        vectors: What it has been sent, float32 (d,) each.
        names: The place of each.
        after: What the snapshot has to reflect.

    Raises:
        Invalid: a vector or the product id is not valid.
        NotFound: there is no such model version.
        ModelBeingDeleted: the model version is marked for deletion.
        NoIndex: the model version has no published build.
        NotYetVisible: the index does not reflect `after`.
    """
    try:
        snapshot = await current_snapshot(context, model_version)
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
    if vectors:
        check_all(vectors, names, snapshot.metric, snapshot.dimension)
    if after is not None and not snapshot.reflects(after.watermark):
        snapshot = await _reflecting(context, model_version, after)
        check_all(vectors, names, snapshot.metric, snapshot.dimension)  # it may be made anew
    return snapshot


async def matching_products(
    context: RequestContext, snapshot: Snapshot, condition: Filter
) -> Matching:
    """The products that match a filter; long evaluation is a search of its own."""
    steps = one_step(snapshot.matching, condition)
    return await run(context, snapshot.matching_us(condition), steps)


async def describe(
    context: RequestContext, snapshot: Snapshot, found: Sequence[Neighbor], names: Sequence[str]
) -> None:
    """Puts the attributes of these names to what was found."""
    ids = [each.product_id for each in found]
    steps = chosen_attributes(snapshot, ids, names)
    all_of = await run(context, attributes_us(len(ids)), steps)
    for each, attributes in zip(found, all_of, strict=True):
        each.attributes = attributes


def index_used(provenance: Provenance) -> IndexUsed:
    """How an answer tells which index gave it."""
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


async def current_snapshot(context: RequestContext, model_version: str) -> Snapshot:
    """What answers for a model version; raises what `IndexRegistry.snapshot` does."""
    registry = context.app.registry
    snapshot = registry.current(model_version)
    if snapshot is not None:
        return snapshot
    admission = context.app.admission  # whether there is such a model version is read
    with admission.slot(admission.calls, context.caller.user_id):
        return await registry.snapshot(model_version)


def find(snapshot: Snapshot, product_id: str) -> RowRef:
    """Where the product is in the snapshot; raises `Invalid` or `NotFound` where it is not."""
    ref = snapshot.find(product_id)
    if ref is None:
        validate_product_id(product_id)
        raise NotFound(f"the index of {snapshot.model_version} has no product {product_id!r}")
    return ref


async def run(context: RequestContext, cost_us: float, steps: Steps[T]) -> T:
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
