"""Searches that ask for more than the nearest products of vectors: see `api.serving.questions`."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Final, Literal

import msgspec
from msgspec import UNSET

from api.admission.executor import Steps
from api.http.context import RequestContext
from api.routes.searching import (
    check_options,
    describe,
    find,
    index_used,
    matching_products,
    run,
    snapshot_for,
    unavailable_attributes,
    watermark_of,
)
from api.serving.questions import Asking, Candidate, Question
from api.serving.snapshot import Matching, Snapshot
from api.wire.explanations import Explained, ExplainedSearch, ExplainedStep
from api.wire.filters import sent_filter
from api.wire.questions import check_name, sent_boosts, sent_example
from api.wire.search import AnySearch, Found, FoundGroups, Neighbor, NeighborGroup
from api.wire.vectors import DECODED_AT_ONCE, check_all, floats
from core.attributes.boosts import Boost
from core.attributes.filters import Filter
from core.errors import FieldError, Invalid
from core.limits import EXAMPLES_MAX, GROUP_SIZE_MAX, VECTORS_TIMES_K_MAX
from core.vectors.arrays import Floats
from core.vectors.examples import mean_vector
from core.watermarks import Presented

_POSITIVE: Final = "recommend.positive"
_NEGATIVE: Final = "recommend.negative"


class _Sent(msgspec.Struct, frozen=True):
    """A search, decoded and checked as far as it can be without an index."""

    examples: list[tuple[str, str | Floats]]
    """What is searched for: its place, and a product id or a vector."""
    condition: Filter | None
    boosts: list[Boost]


async def ask(context: RequestContext, model_version: str, body: AnySearch) -> Found | FoundGroups:
    """Answers such a search; raises what `api.routes.search.search` does."""
    after = watermark_of(context, body)
    if body.explain and not context.caller.operator:
        raise Invalid.of(FieldError("explain", "is for operators alone"))
    steps: list[ExplainedStep] = []
    snapshot, question, matching = await prepared(context, model_version, body, after, steps)
    asking = Asking(snapshot, question, matching)
    neighbors: list[Neighbor] = []
    groups: list[NeighborGroup] = []
    with _timed(steps, "search"):
        if question.group_by is None:
            found = await run(context, asking.cost_us(), asking.neighbors())
            neighbors = _neighbors(body, found)
        else:
            groups = [
                NeighborGroup(group.value, _neighbors(body, group.members))
                for group in await run(context, asking.cost_us(), asking.groups())
            ]
    if body.fields is not UNSET:
        members = neighbors + [each for group in groups for each in group.neighbors]
        with _timed(steps, "fields"):
            await describe(context, snapshot, members, body.fields)
    explain = _explained(asking, matching, steps) if body.explain else UNSET
    index = index_used(asking.provenance)
    if question.group_by is None:
        return Found(neighbors=neighbors, index=index, explain=explain)
    return FoundGroups(groups=groups, index=index, explain=explain)


async def prepared(
    context: RequestContext,
    model_version: str,
    body: AnySearch,
    after: Presented | None,
    steps: list[ExplainedStep],
) -> tuple[Snapshot, Question, Matching | None]:
    """What answers a search, what it asks, and the products that match its filter.

    The snapshot reflects `after`. `steps` gets the time of the filter. Raises what
    `api.routes.search.search` does.
    """
    sent = await context.decode(_sent(context, model_version, body))
    places = [(at, example) for at, example in sent.examples if not isinstance(example, str)]
    vectors = [vector for _, vector in places]
    snapshot = await snapshot_for(
        context, model_version, body, vectors, [at for at, _ in places], after
    )
    question = _question(snapshot, body, sent)
    matching = None
    if sent.condition is not None:
        with _timed(steps, "filter"):
            matching = await matching_products(context, snapshot, sent.condition)
    return snapshot, question, matching


@contextmanager
def _timed(
    steps: list[ExplainedStep], name: Literal["filter", "search", "fields"]
) -> Iterator[None]:
    began = perf_counter()
    yield
    steps.append(ExplainedStep(name, 1000 * (perf_counter() - began)))


def _explained(asking: Asking, matching: Matching | None, steps: list[ExplainedStep]) -> Explained:
    rows = asking.snapshot.rows
    return Explained(
        rows=rows,
        matched=rows if matching is None else matching.count,
        searches=[
            ExplainedSearch(
                plan=each.plan,
                rows=each.rows,
                k=each.k,
                breadth=each.breadth,
                candidates=each.candidates,
                milliseconds=each.milliseconds,
            )
            for each in asking.searches
        ],
        steps=steps,
    )


def _neighbors(body: AnySearch, found: list[Candidate]) -> list[Neighbor]:
    if body.boost is UNSET:
        return [Neighbor(each.product_id, each.score) for each in found]
    return [Neighbor(each.product_id, each.score, each.similarity) for each in found]


def _sent(context: RequestContext, model_version: str, body: AnySearch) -> Steps[_Sent]:
    unavailable = unavailable_attributes(context, model_version)
    check_options(body, unavailable)
    _check_together(body, unavailable)
    msgpack = context.msgpack_in
    examples: list[tuple[str, str | Floats]] = []
    if body.vector is not UNSET:
        examples.append(("vector", floats(body.vector, "vector", msgpack=msgpack)))
    elif isinstance(body.product_id, str):
        examples.append(("product_id", body.product_id))
    elif body.recommend is not UNSET:
        for at, wires in (
            (_POSITIVE, body.recommend.positive),
            (_NEGATIVE, body.recommend.against),
        ):
            for number, wire in enumerate(wires):
                if number and number % DECODED_AT_ONCE == 0:
                    yield 0
                place = f"{at}[{number}]"
                examples.append((place, sent_example(wire, place, msgpack=msgpack)))
    condition = None
    if body.filter is not UNSET:
        condition = sent_filter(body.filter, msgpack=msgpack, unavailable=unavailable)
    boosts = [] if body.boost is UNSET else sent_boosts(body.boost, unavailable)
    return _Sent(examples, condition, boosts)


def _check_together(body: AnySearch, unavailable: Collection[str]) -> None:
    """Checks that each field is valid and goes with the others; raises `Invalid`."""
    if body.vectors is not UNSET:
        for name, given in (
            ("group_by", body.group_by is not UNSET),
            ("diversity", bool(body.diversity)),
            ("boost", body.boost is not UNSET),
            ("explain", body.explain),
        ):
            if given:
                problem = "goes with one question, and not with `vectors`"
                raise Invalid.of(FieldError(name, problem))
        if body.group_size == 1:  # else it lacks `group_by`
            raise Invalid.of(FieldError("vectors", "are several questions: send one"))
    if not 0 <= body.diversity <= 1:  # NaN too
        raise Invalid.of(FieldError("diversity", "must be a number from 0 to 1"))
    _check_groups(body, unavailable)
    if body.recommend is not UNSET:
        positive, negative = len(body.recommend.positive), len(body.recommend.against)
        if positive + negative > EXAMPLES_MAX:
            problem = f"has {negative}, and with `positive` {positive + negative} examples: the "
            raise Invalid.of(FieldError(_NEGATIVE, f"{problem}most is {EXAMPLES_MAX}"))
        if body.recommend.strategy == "best" and positive * body.k > VECTORS_TIMES_K_MAX:
            problem = f"times positive examples is over {VECTORS_TIMES_K_MAX}"
            raise Invalid.of(FieldError("k", problem))


def _check_groups(body: AnySearch, unavailable: Collection[str]) -> None:
    if body.group_size % 1 or not 1 <= body.group_size <= GROUP_SIZE_MAX:
        problem = f"must be a whole number from 1 to {GROUP_SIZE_MAX}"
        raise Invalid.of(FieldError("group_size", problem))
    if body.group_by is not UNSET:
        check_name(body.group_by, "group_by", unavailable)
        if body.diversity:
            raise Invalid.of(FieldError("diversity", "does not go with `group_by`"))
    elif body.group_size != 1:
        raise Invalid.of(FieldError("group_size", "goes with `group_by`, which is not there"))


def _question(snapshot: Snapshot, body: AnySearch, sent: _Sent) -> Question:
    """The question to this snapshot.

    Raises:
        Invalid: the examples have no mean that could be searched for.
        NotFound: an example is not in the index.
    """
    exclude = [ref for ref in map(snapshot.find, body.exclude) if ref is not None]
    positive: list[Floats] = []
    negative: list[Floats] = []
    for at, example in sent.examples:
        vectors = negative if at.startswith(_NEGATIVE) else positive
        if isinstance(example, str):
            ref = find(snapshot, example)
            exclude.append(ref)
            vectors.append(snapshot.vector(ref))
        else:
            vectors.append(example)
    if body.recommend is not UNSET and body.recommend.strategy != "best":
        mean = mean_vector(positive, negative, snapshot.metric)
        check_all([mean], ["recommend"], snapshot.metric, snapshot.dimension)
        positive, negative = [mean], []
    return Question(
        positive=positive,
        negative=negative,
        k=int(body.k),
        exact=body.exact,
        min_score=body.min_score,
        exclude=exclude,
        condition=sent.condition,
        boosts=sent.boosts,
        diversity=body.diversity,
        group_by=None if body.group_by is UNSET else body.group_by,
        group_size=int(body.group_size),
    )
