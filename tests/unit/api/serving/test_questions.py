"""Questions, against comprehensions over the products as they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.admission.executor import finished
from api.serving.delta import DeltaBuffer
from api.serving.questions import Asking, Candidate, Question, attributes_us
from api.serving.snapshot import Snapshot
from core.attributes.boosts import Boost
from core.attributes.filters import parse_filter
from core.vectors.arrays import Floats, prepare, prepare_one, row_scores
from core.vectors.diversity import diverse
from tests.unit.api.serving.test_matching import (
    IDS,
    NEW,
    STEPS,
    VECTORS,
    Step,
    Truth,
    applied,
    built,
    index,
)
from tests.unit.core.attributes.test_columns import FILTERS, expected

EXAMPLES = st.lists(st.integers(0, len(VECTORS) - 1), min_size=1, max_size=3)
BOOSTS = st.lists(
    st.builds(
        Boost,
        attribute=st.sampled_from(["a", "b", "none"]),
        weight=st.sampled_from([-0.5, 0.0, 0.3, 2.0]),
        least=st.just(0.0),
        most=st.sampled_from([0.5, 2.0]),
    ),
    max_size=3,
)
Ranked = list[tuple[float, str, float]]


def ranked(
    truth: Truth,
    positive: Sequence[Floats],
    negative: Sequence[Floats],
    boosts: Sequence[Boost],
    condition: Any,
) -> Ranked:
    """All products that match, best first: the negated score, the product, its similarity."""
    found = []
    for name, (vector, own) in truth.items():
        if condition is not None and not expected(condition, own):
            continue
        row = prepare(vector[None], "cosine")
        near, far = (
            [float(row_scores(prepare_one(each, "cosine"), row)[0]) for each in part]
            for part in (positive, negative)
        )
        similarity = max(near)
        similarity -= max([each - similarity for each in far] + [0.0])
        score = similarity + sum(boost.of(own) for boost in boosts if boost.weight)
        found.append((-score, name, similarity))
    return sorted(found)


def plain(candidates: Sequence[Candidate]) -> Ranked:
    """Candidates as `ranked` has them."""
    return [(-each.score, each.product_id, each.similarity) for each in candidates]


def changed(steps: list[Step], *, graph: bool) -> tuple[Snapshot, Truth]:
    """A snapshot after changes, and the products in it."""
    buffer, truth = DeltaBuffer(index("hnsw_flat" if graph else None)), built()
    applied(buffer, truth, steps, 3)
    return Snapshot(buffer.segment, buffer.snapshot()), truth


def asking(snapshot: Snapshot, positive: Sequence[Floats], k: int, **more: Any) -> Asking:
    """A question to a snapshot."""
    asked: dict[str, Any] = {"negative": [], "exact": False, "min_score": None, "exclude": []}
    question = Question(positive=positive, k=k, **{**asked, **more})
    matching = None if question.condition is None else snapshot.matching(question.condition)
    return Asking(snapshot, question, matching)


@settings(max_examples=200, deadline=None)
@given(
    steps=STEPS,
    positive=EXAMPLES,
    negative=st.one_of(st.just([]), EXAMPLES),
    boosts=BOOSTS,
    condition=st.one_of(st.none(), FILTERS),
    k=st.sampled_from([1, 3, 40]),
    min_score=st.one_of(st.none(), st.sampled_from([-0.5, 0.5])),
    group_by=st.sampled_from(["a", "b", "c", "none"]),
    group_size=st.sampled_from([1, 2, 10]),
    diversity=st.sampled_from([0.2, 1.0]),
    exact=st.booleans(),
    graph=st.booleans(),
)
def test_answers_are_comprehensions_over_the_products_as_they_are(  # noqa: PLR0913, PLR0917
    steps: list[Step],
    positive: list[int],
    negative: list[int],
    boosts: list[Boost],
    condition: Any,
    k: int,
    min_score: float | None,
    group_by: str,
    group_size: int,
    diversity: float,
    exact: bool,  # noqa: FBT001
    graph: bool,  # noqa: FBT001
) -> None:
    """Examples, boosts and filters together; results, groups and variety made of them."""
    snapshot, truth = changed(steps, graph=graph)
    near, far = [VECTORS[each] for each in positive], [VECTORS[each] for each in negative]
    asked: dict[str, Any] = {
        "negative": far,
        "boosts": boosts,
        "condition": None if condition is None else parse_filter(condition),
        "min_score": min_score,
        "exact": exact,
    }
    order = ranked(truth, near, far, boosts, condition)
    if min_score is not None:
        order = [each for each in order if -each[0] >= min_score]
    found = finished(asking(snapshot, near, k, **asked).neighbors())
    assert plain(found) == order[:k]

    groups: dict[Any, Ranked] = {}
    for each in order:
        value = truth[each[1]][1].get(group_by)
        if value is not None and not isinstance(value, list):
            groups.setdefault((isinstance(value, bool), value), []).append(each)
    question = asking(snapshot, near, k, group_by=group_by, group_size=group_size, **asked)
    assert [
        ((isinstance(group.value, bool), group.value), plain(group.members))
        for group in finished(question.groups())
    ] == [(key, members[:group_size]) for key, members in groups.items()][:k]
    assert question.cost_us() > 0

    various = finished(asking(snapshot, near, k, diversity=diversity, **asked).neighbors())
    if order:
        rows = prepare(np.stack([truth[name][0] for _, name, _ in order]), "cosine")
        relevance = np.array([-score for score, _, _ in order])
        chosen = diverse(relevance, rows, k, diversity, "cosine")
        assert plain(various) == [order[position] for position in chosen]
    else:
        assert various == []


@settings(max_examples=50, deadline=None)
@given(
    steps=STEPS,
    example=st.integers(0, len(VECTORS) - 1),
    k=st.sampled_from([1, 5]),
    graph=st.booleans(),
)
def test_what_asks_for_nothing_is_the_plain_answer(
    steps: list[Step],
    example: int,
    k: int,
    graph: bool,  # noqa: FBT001
) -> None:
    """One example, boosts of weight 0, and groups of an attribute that no two products share."""
    unique: list[Step] = [(name, None, {"sku": name}) for name in IDS]
    kept = [step for step in steps if step[1] is not None or step[2] is not None]
    snapshot, truth = changed([*kept, *unique], graph=graph)
    (hits,) = snapshot.search([VECTORS[example]], k)
    boosts = [Boost("a", 0.0, 0.0, 1.0)]
    question = asking(snapshot, [VECTORS[example]], k, boosts=boosts)
    found = finished(question.neighbors())
    assert [each.product_id for each in found] == hits.product_ids
    assert [each.score for each in found] == hits.scores
    assert [each.similarity for each in found] == hits.scores
    assert question.provenance == snapshot.provenance
    condition = parse_filter({"sku": {"$exists": True}})
    with_sku = asking(snapshot, [VECTORS[example]], k, group_by="sku", condition=condition)
    grouped = [group.members[0].product_id for group in finished(with_sku.groups())]
    matching = asking(snapshot, [VECTORS[example]], k, condition=condition)
    assert grouped == [each.product_id for each in finished(matching.neighbors())]
    assert set(truth) <= {*IDS, *NEW}


def test_excluded_products_are_in_no_answer() -> None:
    """Of the segment and of the delta, whatever is asked."""
    snapshot, _ = changed([("a", 0, {"a": 1}), ("p03", 0, {"a": 1})], graph=False)
    refs = [snapshot.find(name) for name in ("a", "p03", "p06")]
    for more in ({}, {"diversity": 0.5}, {"boosts": [Boost("a", 1.0, 0.0, 1.0)]}):
        question = asking(snapshot, [VECTORS[0]], 40, exclude=refs, **more)
        names = {each.product_id for each in finished(question.neighbors())}
        assert not names & {"a", "p03", "p06"}
        assert len(names) == len(IDS) + 1 - 3


@pytest.mark.parametrize("exact", [False, True])
def test_a_boost_that_may_have_missed_a_product_is_not_called_exact(
    exact: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless exactness is asked for, and then it misses none."""
    monkeypatch.setattr("api.serving.questions._POOL_MIN", 1)
    far = "p04"  # its similarity to the query is the least
    snapshot, _ = changed([(far, None, {"stock": 1})], graph=False)
    boosts = [Boost("stock", 5.0, 0.0, 1.0)]
    question = asking(snapshot, [VECTORS[0]], 1, boosts=boosts, exact=exact)
    (found,) = finished(question.neighbors())
    assert (found.product_id == far) == exact
    assert question.provenance.exact == exact


def test_the_estimate_for_groups_has_the_attributes_that_are_read() -> None:
    """Which for many groups take longer than the searches."""
    snapshot, _ = changed([], graph=False)
    plain, grouped, filled = (
        asking(snapshot, [VECTORS[0]], 1000, **more).cost_us()
        for more in ({}, {"group_by": "a"}, {"group_by": "a", "group_size": 10})
    )
    assert grouped >= 3 * plain + attributes_us(5000)
    assert filled >= grouped + 1000 * plain + attributes_us(10_000)


@pytest.mark.parametrize("group_size", [1, 3])
def test_others_have_a_turn_between_the_searches_for_groups(group_size: int) -> None:
    """Of which there may be as many as groups."""
    snapshot, _ = changed([], graph=False)
    question = Question(
        positive=[VECTORS[0]],
        negative=[],
        k=2,
        exact=False,
        min_score=None,
        exclude=[],
        group_by="a",
        group_size=group_size,
    )
    asking = Asking(snapshot, question, None)
    turns = sum(1 for _ in asking.groups())
    assert len(asking.searches) > 1
    assert turns >= len(asking.searches) - 1
