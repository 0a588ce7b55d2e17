"""Questions that are more than the nearest of one vector: examples, boosts, variety, variants.

Each is answered from searches of one snapshot. `_similar` is what is nearest to the vector or the
examples, `_scored` the same with boosts, and results and groups are made of these. What changes
an order that an index found asks for a wider pool first and is exact within it; with `exact` the
pool is widened until no product outside of it could be a result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import msgspec
import numpy as np

from api.admission.executor import Steps
from api.serving.cost import EXCLUDED_US, INLINE_US_MAX, scan_us
from api.serving.segment import Hits, Provenance
from api.serving.snapshot import Matching, RowRef, Snapshot
from core.attributes.boosts import Boost
from core.attributes.filters import AllOf, Exists, Filter, Not, OneOf
from core.attributes.values import Attributes, Value
from core.vectors.arrays import Floats, prepare_one
from core.vectors.diversity import diverse
from core.vectors.examples import penalties
from core.vectors.filtered import Plan

POOL_RATIO: Final = 4
"""Candidates for each result, where their order is made anew."""
_POOL_MIN: Final = 100
_ATTRIBUTES_US: Final = 12.0
"""To read the attributes of one product."""
_FOUND_AT_ONCE: Final = 256
"""Products to a step, a few milliseconds."""
_PICKED_AT_ONCE: Final = 16
_PAIR_RATIO: Final = 8.0
"""A pair of vectors scored in float64 takes so many times what it takes in a scan."""
_GROUP_ROUNDS: Final = 3
"""Searches for groups that are usual, for the estimate of the cost."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, checked."""

    positive: Sequence[Floats]
    """float32 (d,) each, at least one: a result is near to any of them."""
    negative: Sequence[Floats]
    """A result is not near to any of them."""
    k: int
    exact: bool
    min_score: float | None
    exclude: Sequence[RowRef]
    condition: Filter | None = None
    boosts: Sequence[Boost] = ()
    diversity: float = 0.0
    group_by: str | None = None
    group_size: int = 1


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A product that may be a result."""

    product_id: str
    score: float
    similarity: float
    """The score without boosts."""


@dataclass(slots=True)
class Group:
    """Products of one value of an attribute."""

    value: Value
    members: list[Candidate]
    """The best first."""


class SearchDone(msgspec.Struct, frozen=True):
    """One search of the snapshot, for an explanation."""

    plan: Plan
    rows: int
    """Products that it might find, before what the request leaves out."""
    k: int
    breadth: int
    """Of the walk through a graph, or lists looked into; 0 for a scan."""
    candidates: int
    """Rows of the segment that are scored by their vectors, at least."""
    milliseconds: float


class Asking:
    """One question to one snapshot. Its steps run one after the other, in any thread."""

    def __init__(self, snapshot: Snapshot, question: Question, matching: Matching | None) -> None:
        """Takes the products that match the question's filter; None where it has none."""
        self.snapshot = snapshot
        self.question = question
        self._matching = matching
        self._boosts = [boost for boost in question.boosts if boost.weight]
        self._rescores = bool(self._boosts or question.negative)
        """Whether scores are others than those of the searches."""
        self._negative = [prepare_one(each, snapshot.metric) for each in question.negative]
        self._provenance = snapshot.exact_provenance
        self.searches: list[SearchDone] = []
        """What was done."""
        self._certain = True
        """Whether no product outside of a pool could be a result."""

    @property
    def provenance(self) -> Provenance:
        """Of the search that was the least exact, once there is an answer."""
        if self._certain or not self._provenance.exact:
            return self._provenance
        return msgspec.structs.replace(self._provenance, exact=False)

    def cost_us(self) -> float:
        """Microseconds that the answer may take."""
        asked, snapshot = self.question, self.snapshot
        k, dimension = asked.k, snapshot.dimension
        count = max(POOL_RATIO * k, _POOL_MIN) if asked.diversity else k
        total = scan_us(k * count * dimension) + EXCLUDED_US * count if asked.diversity else 0.0
        if self._boosts:
            count = max(POOL_RATIO * count, _POOL_MIN)
            total += _ATTRIBUTES_US * (snapshot.segment.rows if asked.exact else count)
        if self._negative:
            count = max(POOL_RATIO * count, _POOL_MIN)
            pairs = len(self._negative) * count
            total += _PAIR_RATIO * scan_us(pairs * dimension) + EXCLUDED_US * count
        positive, excluded = len(asked.positive), len(asked.exclude)
        if self._matching is None:
            search_us = positive * snapshot.search_us(1, count, exact=asked.exact)
        else:
            search_us = snapshot.search_matching_us(
                positive, count, self._matching, exact=asked.exact
            )
        total += search_us + EXCLUDED_US * excluded
        if asked.group_by is not None:
            # How many searches it takes is not known before: never on the event loop.
            members = k if asked.group_size > 1 else 0
            total *= _GROUP_ROUNDS + members
            # Attributes are read in the first round, in a wider one, and to fill the groups.
            read = k + max(POOL_RATIO * k, _POOL_MIN) + members * asked.group_size
            total = max(total + _ATTRIBUTES_US * read, 2 * INLINE_US_MAX)
        return total

    def neighbors(self) -> Steps[list[Candidate]]:
        """The results, best first; with `diversity` in the order in which they were chosen."""
        asked = self.question
        if not asked.diversity:
            found = yield from self._scored(asked.k, self._matching)
            return self._good(found)
        pool = yield from self._scored(max(POOL_RATIO * asked.k, _POOL_MIN), self._matching)
        pool = self._good(pool)
        if not pool:
            return []
        rows = yield from self._vectors(pool)
        relevance = np.array([each.score for each in pool])
        chosen: list[Candidate] = []
        for best in diverse(relevance, rows, asked.k, asked.diversity, self.snapshot.metric):
            chosen.append(pool[best])
            if len(chosen) % _PICKED_AT_ONCE == 0:
                yield 0
        return chosen

    def groups(self) -> Steps[list[Group]]:
        """The `k` best groups, by their best product; a product without a value is in none.

        After each search the groups that were found are left out by a filter, so that one with
        many products hides no other: every search but the last finds a group more.
        """
        asked = self.question
        name = asked.group_by or ""
        groups: dict[tuple[bool, Value], Group] = {}
        count, matching = asked.k, self._matching
        while True:
            good = self._good((yield from self._scored(count, matching)))
            before = len(groups)
            yield from self._grouped(name, good, groups)
            if len(good) < count or len(groups) >= asked.k:
                break
            yield 0  # as many searches as groups may follow
            if count == asked.k or len(groups) == before:
                count = max(POOL_RATIO * count, _POOL_MIN)
            others = Not(_one_of(name, [group.value for group in groups.values()]))
            matching = self.snapshot.matching(self._all_of(Exists(name), others))
        best = sorted(groups.values(), key=lambda group: _rank(group.members[0]))[: asked.k]
        if asked.group_size > 1:
            for group in best:
                if len(group.members) < asked.group_size:
                    yield 0
                    yield from self._filled(name, group)
                del group.members[asked.group_size :]
        return best

    def _grouped(
        self, name: str, found: Sequence[Candidate], groups: dict[tuple[bool, Value], Group]
    ) -> Steps[None]:
        """Puts products, best first, into their groups."""
        for number, each in enumerate(found):
            if number and number % _FOUND_AT_ONCE == 0:
                yield 0
            value = self.snapshot.attributes_of(each.product_id).get(name)
            if value is None or isinstance(value, list):
                continue
            key = (isinstance(value, bool), value)  # true is no number here
            group = groups.setdefault(key, Group(value, []))
            if len(group.members) < self.question.group_size:
                group.members.append(each)

    def _filled(self, name: str, group: Group) -> Steps[None]:
        """The best products of a group, as many as there are up to `group_size`."""
        size = count = self.question.group_size
        matching = self.snapshot.matching(self._all_of(_one_of(name, [group.value])))
        while True:
            found = yield from self._scored(count, matching)
            groups: dict[tuple[bool, Value], Group] = {}
            yield from self._grouped(name, self._good(found), groups)
            own = groups.get((isinstance(group.value, bool), group.value))
            if own is not None and len(own.members) >= len(group.members):
                group.members = own.members
            if len(group.members) >= size or len(found) < count:
                return
            count *= POOL_RATIO  # lists that have the value as well are in no group
            yield 0

    def _all_of(self, *conditions: Filter) -> Filter:
        own = self.question.condition
        return AllOf(conditions if own is None else (own, *conditions))

    def _good(self, found: list[Candidate]) -> list[Candidate]:
        least = self.question.min_score
        return found if least is None else [each for each in found if each.score >= least]

    def _scored(self, count: int, matching: Matching | None) -> Steps[list[Candidate]]:
        """The best by their scores, with what their attributes add."""
        if not self._boosts:
            found = yield from self._similar(count, matching)
            return found
        gain = sum(max(0.0, boost.weight) for boost in self._boosts)
        found = yield from self._ordered_anew(count, matching, self._similar, self._boosted, gain)
        return found

    def _similar(self, count: int, matching: Matching | None) -> Steps[list[Candidate]]:
        """The nearest to any positive example, less what is near to a negative one."""
        if not self._negative:
            found = yield from self._nearest(count, matching)
            return found
        found = yield from self._ordered_anew(count, matching, self._nearest, self._penalized, 0.0)
        return found

    def _nearest(self, count: int, matching: Matching | None) -> Steps[list[Candidate]]:
        """The nearest to any positive example.

        One of the nearest is among as many of the example that it is nearest to.
        """
        best: dict[str, float] = {}
        for number, vector in enumerate(self.question.positive):
            if number:
                yield 0
            hits = self._search(vector, count, matching)
            if len(self.question.positive) == 1:
                pairs = zip(hits.product_ids, hits.scores, strict=True)
                return [Candidate(product_id, score, score) for product_id, score in pairs]
            for product_id, score in zip(hits.product_ids, hits.scores, strict=True):
                if score > best.get(product_id, -np.inf):
                    best[product_id] = score
        found = [Candidate(product_id, score, score) for product_id, score in best.items()]
        return sorted(found, key=_rank)[:count]

    def _search(self, vector: Floats, count: int, matching: Matching | None) -> Hits:
        asked, snapshot = self.question, self.snapshot
        least = None if self._rescores else asked.min_score
        began = perf_counter()
        plans: list[Plan] = []
        if matching is None:
            (hits,) = snapshot.search(
                [vector], count, exact=asked.exact, exclude=asked.exclude, min_score=least
            )
            used = snapshot.exact_provenance if asked.exact else snapshot.provenance
            plan: Plan = "scan" if asked.exact else "all"
            rows, searched = snapshot.rows, snapshot.segment.rows
        else:
            (hits,), used = snapshot.search_matching(
                [vector],
                count,
                matching,
                exact=asked.exact,
                exclude=asked.exclude,
                min_score=least,
                used=plans,
            )
            (plan,) = plans
            rows, searched = matching.count, matching.rows.count
        took = 1000 * (perf_counter() - began)
        effort = snapshot.segment.effort(plan, searched, count)
        self.searches.append(SearchDone(plan, rows, count, *effort, took))
        self._provenance = min(self._provenance, used, key=lambda each: (each.recall, each.exact))
        return hits

    def _ordered_anew(
        self,
        count: int,
        matching: Matching | None,
        find: Callable[[int, Matching | None], Steps[list[Candidate]]],
        score: Callable[[list[Candidate]], Steps[list[Candidate]]],
        gain: float,
    ) -> Steps[list[Candidate]]:
        """The best by other scores than those by which they are found.

        Args:
            count: How many.
            matching: Among which products.
            find: Finds the best of a pool.
            score: Gives them their scores.
            gain: No score is larger by more than this.
        """
        pool = max(POOL_RATIO * count, _POOL_MIN)
        while True:
            found = yield from find(pool, matching)
            scored = yield from score(found)
            scored.sort(key=_rank)
            if len(found) < pool or scored[count - 1].score > found[-1].score + gain:
                return scored[:count]
            if not self.question.exact:
                self._certain = False
                return scored[:count]
            pool *= POOL_RATIO
            yield 0

    def _boosted(self, found: list[Candidate]) -> Steps[list[Candidate]]:
        boosted = []
        for number, each in enumerate(found):
            if number and number % _FOUND_AT_ONCE == 0:
                yield 0
            attributes = self.snapshot.attributes_of(each.product_id)
            score = each.score + sum(boost.of(attributes) for boost in self._boosts)
            boosted.append(Candidate(each.product_id, score, each.similarity))
        return boosted

    def _penalized(self, found: list[Candidate]) -> Steps[list[Candidate]]:
        penalized = []
        for start in range(0, len(found), _FOUND_AT_ONCE):
            if start:
                yield 0
            part = found[start : start + _FOUND_AT_ONCE]
            rows = yield from self._vectors(part)
            scores = np.array([each.score for each in part])
            scores -= penalties(scores, rows, self._negative)
            pairs = zip(part, scores.tolist(), strict=True)
            penalized += [Candidate(each.product_id, score, score) for each, score in pairs]
        return penalized

    def _vectors(self, found: Sequence[Candidate]) -> Steps[Floats]:
        rows = np.empty((len(found), self.snapshot.dimension), dtype=np.float32)
        for number, each in enumerate(found):
            if number and number % _FOUND_AT_ONCE == 0:
                yield 0
            ref = self.snapshot.find(each.product_id)
            if ref is None:
                raise AssertionError("a snapshot has the products that it finds")
            rows[number] = self.snapshot.vector(ref)
        return rows


def attributes_us(products: int) -> float:
    """Microseconds that it may take to read the attributes of so many products."""
    return _ATTRIBUTES_US * products


def chosen_attributes(
    snapshot: Snapshot, product_ids: Sequence[str], names: Sequence[str]
) -> Steps[list[Attributes]]:
    """Of each product the attributes of these names that it has."""
    found: list[Attributes] = []
    for number, product_id in enumerate(product_ids):
        if number and number % _FOUND_AT_ONCE == 0:
            yield 0
        own = snapshot.attributes_of(product_id)
        found.append({name: own[name] for name in names if name in own})
    return found


def _rank(each: Candidate) -> tuple[float, str]:
    return -each.score, each.product_id


def _one_of(name: str, values: Sequence[Value]) -> OneOf:
    return OneOf(
        name,
        strings=frozenset(value for value in values if isinstance(value, str)),
        numbers=frozenset(
            float(value)
            for value in values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ),
        booleans=frozenset(value for value in values if isinstance(value, bool)),
    )
