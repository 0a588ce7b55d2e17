"""Each index family, forced, on real rows: `python -m tests.benchmarks.families --catalogue FILE`.

Recall@10 is measured on queries that are in no build at all. Searches run one by one on one thread,
raw FAISS and `Searcher.search_one` in turns on the same mapped index, with the same parameters.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import faiss as _faiss
import msgspec
import numpy as np

from core.index import files
from core.models import Family, Metric
from core.vectors.arrays import Floats, prepare
from core.vectors.builder import BuiltIndex, build_index
from core.vectors.families import search_parameters, set_threads
from core.vectors.parameters import IndexLimits
from core.vectors.recall import ground_truth, recalls
from core.vectors.search import Searcher
from worker.building.launcher import thread_count

faiss: Final[Any] = _faiss
_QUERIES: Final = 1000
_K: Final = 10
_TURNS: Final = 5
_SEED: Final = 11
_HEAD: Final = (
    f"{'family':10} {'rows':>7} {'recall@10':>9} {'published':>9} {'index MB':>8} "
    f"{'resident MB':>11} {'build s':>7} {'parameters':>22} {'FAISS /s':>8} {'K9 /s':>7} "
    f"{'K9 adds us':>10}"
)


class Case(msgspec.Struct, frozen=True):
    """What each family is tried on."""

    rows: Floats
    queries: Floats
    truth: Floats
    metric: Metric
    target: float


def load(path: Path) -> Floats:
    """float32 (n, d): the vectors of a catalogue."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - heavy, and not needed for --help

    column = pq.read_table(path, columns=["vector"])["vector"].combine_chunks()
    flat = np.asarray(column.flatten()).astype(np.float32)
    return flat.reshape(len(column), -1)


def case(vectors: Floats, count: int, metric: Metric, target: float) -> Case:
    """`count` rows, or all but the queries, with queries that are none of them."""
    random = np.random.default_rng(_SEED)
    if metric != "cosine":
        # Rows of uneven length, as these metrics are chosen for.
        vectors = (vectors * random.lognormal(0.0, 0.4, (vectors.shape[0], 1))).astype(np.float32)
    drawn = random.permutation(vectors.shape[0])
    queries = prepare(vectors[np.sort(drawn[:_QUERIES])], metric)
    rows = prepare(vectors[np.sort(drawn[_QUERIES : _QUERIES + count])], metric)
    return Case(rows, queries, ground_truth(queries, rows, None, _K, metric), metric, target)


def mapped(built: BuiltIndex, rows: Floats, metric: Metric, directory: Path) -> Searcher:
    """The index as serving has it: written, and mapped from its file."""
    info = built.info
    vectors = directory / files.VECTORS
    files.write_array(vectors, rows)
    there = np.asarray(np.load(vectors, mmap_mode="r"))
    if built.index is None:
        return Searcher(there, metric, info)
    path = directory / files.INDEX
    files.write_index(path, built.index)
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    info = msgspec.structs.replace(info, bytes=path.stat().st_size)
    return Searcher(there, metric, info, index, built.order, built.members)


def raw_search(searcher: Searcher, built: BuiltIndex, asked: Floats) -> Callable[[int], Any]:
    """FAISS alone on query number i; a flat index stands for the family exact."""
    index, count, parameters = searcher.index, _K, None
    if index is None:
        flat = faiss.IndexFlatL2 if searcher.metric == "l2" else faiss.IndexFlatIP
        index = flat(searcher.d)
        index.add(searcher.rows)
    else:
        effort = built.info.efforts[0]
        count = effort.candidates
        parameters = search_parameters(built.info.family, effort.breadth)
    lines = [asked[i : i + 1] for i in range(asked.shape[0])]
    return lambda i: index.search(lines[i], count, params=parameters)


def seconds(search: Callable[[int], Any]) -> float:
    """For one search, over all queries."""
    start = time.perf_counter()
    for i in range(_QUERIES):
        search(i)
    return (time.perf_counter() - start) / _QUERIES


def run(family: Family, tried: Case, directory: Path) -> str:
    """One line of the table."""
    start = time.perf_counter()
    built = build_index(
        tried.rows,
        tried.metric,
        target_recall=tried.target,
        limits=IndexLimits(),
        progress=lambda *_: None,
        forced=family,
        threads=thread_count(0),
    )
    took = time.perf_counter() - start
    set_threads(1)
    searcher = mapped(built, tried.rows, tried.metric, directory)
    _, scores = searcher.search(tried.queries, _K)
    recall = float(recalls(scores, tried.truth).mean())
    ask = raw_search(searcher, built, built.info.layout.query(tried.queries))
    raw = ours = np.inf
    for _ in range(_TURNS):
        raw = min(raw, seconds(ask))
        ours = min(ours, seconds(lambda i: searcher.search_one(tried.queries[i], _K)))
    index_bytes = searcher.info.bytes
    resident = index_bytes + tried.rows.nbytes + (0 if built.order is None else built.order.nbytes)
    efforts = built.info.efforts
    breadth = "ef" if family.startswith("hnsw") else "nprobe"
    how = f"{breadth} {efforts[0].breadth}, rank {efforts[0].candidates}" if efforts else "all rows"
    return (
        f"{family:10} {searcher.n:7} {recall:9.4f} {built.recall.value:9.4f} "
        f"{index_bytes / 1e6:8.1f} {resident / 1e6:11.1f} {took:7.1f} {how:>22} "
        f"{1 / raw:8.0f} {1 / ours:7.0f} {(ours - raw) * 1e6:10.0f}"
    )


def main() -> int:
    """Prints the table; exits 1 where there is no catalogue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--metric", choices=get_args(Metric), default="cosine")
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--families", choices=get_args(Family), nargs="+", default=get_args(Family))
    given = parser.parse_args()
    if not given.catalogue.is_file():
        print(f"there is no catalogue at {given.catalogue}: name one with --catalogue PATH")
        return 1
    vectors = load(given.catalogue)
    print(
        f"{given.metric}, target recall {given.target}, {_QUERIES} queries, {thread_count(0)} cores"
    )
    print(_HEAD)
    for count in given.rows:
        tried = case(vectors, count, given.metric, given.target)
        for family in given.families:
            with tempfile.TemporaryDirectory() as directory:
                print(run(family, tried, Path(directory)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
