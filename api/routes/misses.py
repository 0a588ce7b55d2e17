"""Why a product is not in an answer: what operators ask when one is missing."""

from dataclasses import replace
from typing import Annotated, Any, Final

import numpy as np
from litestar import Controller, post
from litestar.enums import RequestEncodingType
from litestar.params import Body

from api.admission.executor import Steps
from api.http.context import RequestContext
from api.http.hooks import BODY, operators
from api.http.parameters import ModelVersion
from api.http.request import ApiRequest
from api.routes.questions import prepared
from api.routes.searching import index_used, run, watermark_of
from api.serving.questions import Asking, Candidate, Question
from api.serving.snapshot import Matching, RowRef, Snapshot
from api.wire.misses import Miss, MissBody, Reason
from core.errors import FieldError, Invalid, NotFound
from core.identifiers import product_id_problem
from core.vectors.arrays import check_vector, prepare_one, row_scores

_ROUNDING: Final = 1e-4
"""Scores of one pair, computed in two ways, differ by less, as a share."""

MissData = Annotated[
    MissBody[Any], Body(media_type=RequestEncodingType.JSON, schema_component_key=MissBody.__name__)
]


async def explain_miss(context: RequestContext, model_version: str, body: MissBody[Any]) -> Miss:
    """Tells why a product is not in the answer to a search.

    Raises what `api.routes.search.search` does.
    """
    after = watermark_of(context, body)
    expected = body.expected_product_id
    problem = product_id_problem(expected)
    if problem:
        raise Invalid.of(FieldError("expected_product_id", problem))
    snapshot, question, matching = await prepared(context, model_version, body, after, [])
    asking = Asking(snapshot, question, matching)
    rank: int | None = None
    score: float | None = None
    ref = snapshot.find(expected)
    why = await _absent(context, snapshot, expected) if ref is None else None
    if ref is not None:
        why = _left_out(snapshot, question, ref)
    if ref is not None and why is None:
        everything = _everything(snapshot, question, matching, ref)
        ranked = await run(context, everything.cost_us(), everything.neighbors())
        at, one = next(pair for pair in enumerate(ranked, 1) if pair[1].product_id == expected)
        rank, score = at, one.score
        if question.min_score is not None and score < question.min_score:
            why = "below_min_score", f"its score is below {question.min_score}"
        elif expected in await run(context, asking.cost_us(), _answer(asking)):
            why = "found", "it is among the results"
        else:
            exact = Asking(snapshot, replace(question, exact=True), matching)
            found = await run(context, exact.cost_us(), _answer(exact))
            why = _why_missed(question, rank, in_exact=expected in found)
    if why is None:
        raise AssertionError("a product that is there has a rank")
    return Miss(
        product_id=expected,
        reason=why[0],
        detail=why[1],
        rank=rank,
        score=score,
        index=index_used(asking.provenance),
    )


def _left_out(snapshot: Snapshot, question: Question, ref: RowRef) -> tuple[Reason, str] | None:
    """Why the search may not find the product at all; None where it may."""
    if ref in question.exclude:
        return "excluded", "it is in `exclude`, an example, or the product that is searched by"
    condition = question.condition
    if condition is not None and not condition.matches(snapshot.attributes(ref)):
        return "filtered_out", "its attributes do not match `filter`"
    return None


def _why_missed(question: Question, rank: int, *, in_exact: bool) -> tuple[Reason, str]:
    if in_exact:
        return "missed_by_index", "the search did not find it, and the same one with `exact` does"
    if question.group_by is not None:
        detail = "it is not among the best of the `k` best groups, or has no value for `group_by`"
        return "not_chosen", detail
    if rank <= question.k:
        return "not_chosen", "others were chosen for `diversity`"
    return "beyond_k", f"{rank - 1} products come before it, and `k` is {question.k}"


async def _absent(
    context: RequestContext, snapshot: Snapshot, product_id: str
) -> tuple[Reason, str]:
    """Why the index has no such product."""
    resources, admission = context.app.resources, context.app.admission
    with admission.slot(admission.calls, context.caller.user_id):
        model = await resources.models.known_model(snapshot.model_version)
        try:
            row = await resources.embeddings.get_embedding(
                snapshot.model_version, product_id, model.generation
            )
        except NotFound:
            return "no_such_row", "there is no such embedding, or it was deleted"
    data = row.vector or b""
    vector = np.frombuffer(data[: len(data) // 4 * 4], dtype="<f4")
    problem = check_vector(vector, snapshot.metric, snapshot.dimension)
    if problem:
        return "quarantined", f"its vector {problem}"
    return "not_indexed_yet", "it is stored, and this process has not read it since"


def _everything(
    snapshot: Snapshot, question: Question, matching: Matching | None, ref: RowRef
) -> Asking:
    """A search for all products up to this one, by their exact scores."""
    least = None
    if len(question.positive) == 1 and not question.negative and not question.boosts:
        query = prepare_one(question.positive[0], snapshot.metric)
        score = float(row_scores(query, snapshot.vector(ref)[None])[0])
        least = score - _ROUNDING * max(1.0, abs(score))
    everything = replace(
        question, k=max(1, snapshot.rows), exact=True, min_score=least, diversity=0.0, group_by=None
    )
    return Asking(snapshot, everything, matching)


def _answer(asking: Asking) -> Steps[set[str]]:
    """The products of an answer."""
    found: list[Candidate] = []
    if asking.question.group_by is None:
        found = yield from asking.neighbors()
    else:
        groups = yield from asking.groups()
        found = [each for group in groups for each in group.members]
    return {each.product_id for each in found}


class MissController(Controller):
    """Why a product is not in an answer."""

    tags = ("search",)

    @post(
        "/models/{model_version:str}/explain-miss",
        status_code=200,
        guards=[operators],
        summary="Explain why a product is not found",
        opt={BODY: "search"},
    )
    async def explain_miss(
        self, request: ApiRequest, model_version: ModelVersion, data: MissData
    ) -> Miss:
        """Why a product is not in the answer to a search, and its exact rank.

        Takes a search with one question, and `expected_product_id`.
        """
        return await explain_miss(request.context, model_version, data)
