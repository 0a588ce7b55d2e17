"""Recall on new queries where many rows are near copies: `python -m tests.benchmarks.near_copies`.

    python -m tests.benchmarks.near_copies [--share 1 10 50] [--seeds 0 1 2] [--noise 1e-6]
        [--products 1] [--data clusters low_rank] [--rows 20000] [--dimension 128]
        [--metric cosine] [--target 0.95] [--identical 0] [--family hnsw_flat]

Rows are prepared, built and searched as a build does. 1,000 queries are drawn as the other rows are
and are none of them. What is right for them is found by numpy in float64, not by K9. Exits 1 where
the recall is below the target, or more queries find nothing right than 1 in 1,000.
"""

import argparse
import sys
import time
from typing import Final, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import RecallBelowTarget
from core.models import Family, Metric
from core.vectors.arrays import Floats, prepare
from core.vectors.builder import BuiltIndex, build_index
from core.vectors.families import set_threads
from core.vectors.parameters import IndexLimits
from core.vectors.search import Searcher
from worker.building.launcher import thread_count

K: Final = 10
QUERIES: Final = 1000
_HEAD: Final = (
    f"{'data':9} {'copies':>7} {'seed':>4} {'family':>9} {'parameters':>16} {'in index':>8} "
    f"{'near':>6} {'build s':>7} {'claimed':>16} {'zero recall':>14} {'recall@10':>9} "
    f"{'nothing':>7} {'us':>6}"
)


class Case(msgspec.Struct, frozen=True):
    """One set of rows with near copies among them."""

    data: str
    rows: int
    dimension: int
    metric: Metric
    copies: int
    """Of all rows."""
    products: int
    """That these are copies of."""
    noise: float
    """Standard deviation of each number of a copy, where the norm of a row is 1."""
    identical: int
    """Rows that are equal to the first product."""
    seed: int


def drawn(case: Case, count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Rows (count, d) of about unit length, of a kind."""
    d = case.dimension
    if case.data == "gauss":
        rows = random.standard_normal((count, d))
    elif case.data == "clusters":
        centers = random.standard_normal((200, d))
        rows = centers[random.integers(0, 200, count)] + 0.5 * random.standard_normal((count, d))
    elif case.data == "flat":  # half of the numbers are 0 in every row
        rows = random.standard_normal((count, d))
        rows[:, d // 2 :] = 0
    else:
        directions = random.standard_normal((16, d))
        rows = random.standard_normal((count, 16)) @ directions
        rows += 0.05 * random.standard_normal((count, d))
    if case.metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows
    lengths = random.lognormal(0.0, 0.4, (count, 1))
    scaled: NDArray[np.float64] = rows / np.sqrt((rows**2).sum(axis=1).mean()) * lengths
    return scaled


def made(case: Case) -> tuple[Floats, Floats]:
    """Rows with near copies in no order, and queries that are neither, float32."""
    random = np.random.default_rng(case.seed)
    own = case.rows - case.copies - case.identical
    every = drawn(case, own + QUERIES, random)
    queries, rows = every[:QUERIES], every[QUERIES:]
    copies = rows[np.arange(case.copies) % case.products]
    copies = copies + case.noise * random.standard_normal(copies.shape)
    same = np.repeat(rows[:1], case.identical, axis=0)
    mixed = random.permutation(np.concatenate((rows, copies, same)))
    return mixed.astype(np.float32), queries.astype(np.float32)


def right(queries: Floats, rows: Floats, metric: Metric) -> NDArray[np.float64]:
    """float64 (m, n): the scores that plain numpy gives."""
    q, r = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "l2":
        products = 2 * q @ r.T
        result: NDArray[np.float64] = products - (r**2).sum(axis=1) - (q**2).sum(axis=1)[:, None]
        return result
    if metric == "cosine":
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        r /= np.linalg.norm(r, axis=1, keepdims=True)
    found: NDArray[np.float64] = q @ r.T
    return found


def checked(searcher: Searcher, queries: Floats, rows: Floats) -> tuple[NDArray[np.float64], float]:
    """The recall@10 of each query, and microseconds a search.

    Raises:
        SystemExit: a score is not that of its row, or a row came twice.
    """
    scores = right(queries, rows, searcher.metric)
    least = -np.partition(-scores, K - 1, axis=1)[:, K - 1]
    slack = 1e-6 * np.abs(scores).max()
    hits = np.empty(queries.shape[0])
    spent = 0.0
    for line, query in enumerate(queries):
        start = time.perf_counter()
        near, found = searcher.search_one(query, K)
        spent += time.perf_counter() - start
        if np.abs(scores[line, near] - found).max() > slack or np.unique(near).size < K:
            sys.exit(f"query {line} was answered with a score that is not its row's")
        hits[line] = (scores[line, near] >= least[line] - slack).sum() / K
    return hits, spent / queries.shape[0] * 1e6


def run(case: Case, target: float, family: Family | None) -> bool:
    """One line of the table; whether the recall is as it should be."""
    raw, queries = made(case)
    rows = prepare(raw, case.metric)
    threads = thread_count(0)
    start = time.perf_counter()
    head = f"{case.data:9} {case.copies:7} {case.seed:4}"
    try:
        built = build_index(
            rows,
            case.metric,
            target_recall=target,
            limits=IndexLimits(),
            progress=lambda *_: None,
            forced=family,
            threads=threads,
        )
    except RecallBelowTarget as refused:
        print(f"{head} not published: {refused}", flush=True)
        return True
    took = time.perf_counter() - start
    set_threads(1)
    searcher = Searcher(rows, case.metric, built.info, built.index, built.order, built.members)
    hits, micros = checked(searcher, queries, raw)
    print(f"{head} {described(built, took)} {line(hits, micros)}", flush=True)
    return bool(hits.mean() >= target and np.count_nonzero(hits == 0) <= QUERIES // 1000)


def described(built: BuiltIndex, took: float) -> str:
    """What was built, and what its manifest claims."""
    zero, info = built.recall.zero, built.info
    how = f"{info.efforts[0].breadth}, {info.efforts[0].candidates}" if info.efforts else "all rows"
    worst = "" if zero is None else f"{zero.count}/{zero.queries} {zero.upper:.4f}"
    claimed = f"{built.recall.value:.4f}, {built.recall.lower:.4f}"
    return (
        f"{info.family:>9} {how:>16} {info.positions:8} {info.near_copies:6} {took:7.1f} "
        f"{claimed:>16} {worst:>14}"
    )


def line(hits: NDArray[np.float64], micros: float) -> str:
    """What was measured."""
    return f"{hits.mean():9.4f} {np.count_nonzero(hits == 0):7} {micros:6.0f}"


def main() -> int:
    """Prints the table; exits 1 where a figure is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, nargs="+", default=[1, 10, 50], help="percent")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=float, nargs="+", default=[1e-6])
    parser.add_argument("--products", type=int, default=1)
    parser.add_argument("--identical", type=int, default=0)
    kinds = ["clusters", "low_rank", "gauss", "flat"]
    parser.add_argument("--data", choices=kinds, nargs="+", default=kinds[:2])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--metric", choices=get_args(Metric), default="cosine")
    parser.add_argument("--family", choices=get_args(Family))
    parser.add_argument("--target", type=float, default=0.95)
    given = parser.parse_args()
    good = True
    for noise in given.noise:
        print(f"{given.metric}, {given.rows} rows of {given.dimension}, noise {noise:g}")
        print(_HEAD)
        for data in given.data:
            for share in given.share:
                for seed in given.seeds:
                    case = Case(
                        data=data,
                        rows=given.rows,
                        dimension=given.dimension,
                        metric=given.metric,
                        copies=round(given.rows * share / 100),
                        products=given.products,
                        noise=noise,
                        identical=given.identical,
                        seed=seed,
                    )
                    good &= run(case, given.target, given.family)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
