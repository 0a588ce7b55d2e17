"""The index that a build chooses for a memory budget, and how it searches."""

import tempfile
import time
from pathlib import Path

from core.errors import RecallBelowTarget
from core.vectors.arrays import Floats, prepare
from core.vectors.builder import BuiltIndex, build_index
from core.vectors.families import set_threads
from core.vectors.parameters import IndexLimits
from tests.benchmarks.build import TARGET
from tests.benchmarks.exact import QUERIES, K, Truth
from tests.benchmarks.families import mapped, raw_search, seconds
from tests.benchmarks.figures import Report
from tests.benchmarks.grown import ids_of
from worker.building.launcher import thread_count


def measure_budget(
    vectors: Floats, queries: Floats, budget: int, turns: int, report: Report
) -> str:
    """Builds for a budget in bytes, and reports.

    Args:
        vectors: float32 (n, d), the rows.
        queries: float32 (`QUERIES`, d), which are no rows.
        budget: bytes of the FAISS index at the most.
        turns: of searches, by FAISS and by K9 in turns.
        report: takes the figures.

    Returns:
        The family of the index, or that there is none.
    """
    rows = prepare(vectors, "cosine")
    began = time.perf_counter()
    try:
        built = build_index(
            rows,
            "cosine",
            target_recall=TARGET,
            limits=IndexLimits(index_bytes_max=budget),
            progress=lambda *_: None,
            threads=thread_count(0),
        )
    except RecallBelowTarget as refused:
        print(refused)
        return "none: the build is refused"
    report.add("small budget: build", [time.perf_counter() - began], "s")
    _search(built, rows, Truth(ids_of(len(rows)), rows, queries), turns, report)
    return built.info.family


def _search(built: BuiltIndex, rows: Floats, truth: Truth, turns: int, report: Report) -> None:
    """Recall, and the time of a search on one thread."""
    set_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        searcher = mapped(built, rows, "cosine", Path(directory))
        report.add("small budget: index", [searcher.info.bytes / 1e6], "MB")
        ids = ids_of(len(rows))
        found, _ = searcher.search(truth.queries, K)
        names = [[ids[row] for row in line if row >= 0] for line in found.tolist()]
        report.add("small budget: recall@10", [truth.recall(names)])
        ask = raw_search(searcher, built, built.info.layout.query(truth.queries))
        ours: list[float] = []
        raw: list[float] = []
        for _ in range(turns):
            raw.append(1e6 * seconds(ask))
            ours.append(1e6 * seconds(lambda i: searcher.search_one(truth.queries[i], K)))
    report.add("small budget: FAISS, a search", raw, "µs")
    report.add("small budget: K9, a search", ours, "µs")
    assert len(truth.queries) == QUERIES, "as many as `seconds` asks"
