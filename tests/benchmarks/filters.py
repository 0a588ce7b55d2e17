"""Filtered search by selectivity: `python -m tests.benchmarks.filters --catalogue FILE`.

    python -m tests.benchmarks.filters --catalogue FILE [--rows 10000] [--k 10 100]
        [--family hnsw_sq8] [--selectivity 0.01 0.1 1 5 10 25 50 90 100] [--queries 200]
        [--plans] [--qdrant] [--directory DIR]

Two kinds of filters: `random` has nothing to do with the vectors; `region` goes along with them: it
allows the rows nearest to a row drawn at random, or those furthest from it. Queries are in no
build. Recall is over as many rows as match, up to k. Milliseconds are processor time of one search
on one thread, with the evaluation of the filter; engines and plans are asked in turns, query by
query. `--plans` measures each plan besides the chosen one; `select` is a selector inside FAISS's
own search of the graph. `--qdrant` asks Qdrant's engine in process as well (qdrant-edge-py, in
an environment of its own, on PYTHONPATH). With `--directory` what was built is kept there, and used
again.
"""

import argparse
import importlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import faiss as _faiss
import msgspec
import numpy as np

from core.attributes.column_writer import ColumnWriter
from core.attributes.columns import Columns
from core.attributes.filters import parse_filter
from core.index import files
from core.models import Family
from core.vectors.arrays import Doubles, Floats
from core.vectors.builder import build_index
from core.vectors.families import search_parameters, set_threads
from core.vectors.filtered import Allowed, FilteredSearcher, Plan
from core.vectors.parameters import IndexInfo, IndexLimits
from core.vectors.search import Searcher
from tests.benchmarks.families import Case, case, load, mapped
from worker.building.launcher import thread_count

faiss: Final[Any] = _faiss
_TARGET: Final = 0.95
_REGIONS: Final = 4
_SEED: Final = 5
_SLACK: Final = 1e-6
"""Scores of float32 products may be off by so much."""
_QDRANT_EF: Final = 64
_QDRANT_PAGE: Final = 2000
_INFO: Final = "info.json"

Engine = Callable[[int, dict[str, Any], int], Any]
"""Row numbers found for query i under a condition {name: {operator: bound}}, and k."""


def attributes_of(rows: Floats) -> dict[str, Doubles]:
    """Numbers in [0, 1), each as often: one at random, the others the rank by nearness to a row."""
    random = np.random.default_rng(_SEED)
    n = rows.shape[0]
    centers = random.choice(n, _REGIONS, replace=False)
    found = {"random": random.permutation(n) / n}
    for number, center in enumerate(centers):
        rank = np.empty(n)
        rank[np.argsort(-(rows @ rows[center]), kind="stable")] = np.arange(n) / n
        found[f"region{number}"] = rank
    return found


def condition(kind: str, share: float, number: int) -> dict[str, Any]:
    """The filter of query number i."""
    if kind == "random":
        return {"random": {"$lt": share}}
    name = f"region{number % _REGIONS}"
    return {name: {"$lt": share} if number // _REGIONS % 2 == 0 else {"$gte": 1 - share}}


def opened(tried: Case, family: Family, directory: Path) -> Searcher:
    """The index, built and mapped, or as it was kept in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = directory / _INFO
    if kept.exists():
        info = msgspec.json.decode(kept.read_bytes(), type=IndexInfo)
        rows = np.asarray(np.load(directory / files.VECTORS, mmap_mode="r"))
        if not np.array_equal(rows, tried.rows):
            sys.exit(f"{directory} has other rows")
        index = faiss.read_index(str(directory / files.INDEX), faiss.IO_FLAG_MMAP_IFC)
        return Searcher(rows, "cosine", info, index, np.load(directory / files.ORDER))
    built = build_index(
        tried.rows,
        "cosine",
        target_recall=_TARGET,
        limits=IndexLimits(),
        progress=lambda *_: None,
        forced=family,
        threads=thread_count(0),
    )
    searcher = mapped(built, tried.rows, "cosine", directory)
    if built.order is not None and built.members is None:
        files.write_array(directory / files.ORDER, built.order)
        kept.write_bytes(msgspec.json.encode(built.info))
    return searcher


class K9:
    """K9's search, from the filter as it is decoded to the rows."""

    def __init__(
        self, searcher: Searcher, columns: Columns, queries: Floats, plan: Plan | None = None
    ) -> None:
        self._filtered = FilteredSearcher(searcher)
        self._columns = columns
        self._queries = queries
        self._plan = plan
        self.used: Counter[Plan] = Counter()
        """How often each plan was used."""

    def __call__(self, number: int, asked: dict[str, Any], k: int) -> Any:
        """As `Engine`."""
        allowed = Allowed(self._columns.select(parse_filter(asked)))
        found = self._filtered.search_one(self._queries[number], k, allowed, plan=self._plan)
        self.used[found.plan] += 1
        return found.rows


def selector(searcher: Searcher, columns: Columns, queries: Floats) -> Engine:
    """A selector inside FAISS's search of the graph, as broad as Qdrant's."""
    order = searcher.order

    def search(number: int, asked: dict[str, Any], k: int) -> Any:
        mask = columns.select(parse_filter(asked))[order]
        parameters = search_parameters(searcher.info.family, max(_QDRANT_EF, k))
        bits = np.packbits(mask, bitorder="little")
        parameters.sel = chosen = faiss.IDSelectorBitmap(bits)
        positions = searcher.index.search(queries[number : number + 1], k, params=parameters)[1][0]
        del chosen
        return searcher.rows_at(positions[positions >= 0])

    return search


def qdrant(rows: Floats, attributes: dict[str, Doubles], queries: Floats, path: Path) -> Engine:
    """Qdrant's engine with its default graph, an index on each attribute, and one thread."""
    edge: Any = importlib.import_module("qdrant_edge")
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(rows.shape[1], edge.Distance.Dot),
        hnsw_config=edge.HnswIndexConfig(16, 100, 10_000),
        optimizers=edge.EdgeOptimizersConfig(
            indexing_threshold=1000, default_segment_number=1, max_segment_size=10**7
        ),
        max_search_threads=1,
    )
    if path.exists():
        shard = edge.EdgeShard.load(str(path), config)
    else:
        path.mkdir(parents=True)
        shard = edge.EdgeShard.create(str(path), config)
        for name in attributes:
            kind = edge.PayloadSchemaType.Float
            shard.update(edge.UpdateOperation.create_field_index(name, kind))
        for start in range(0, rows.shape[0], _QDRANT_PAGE):
            points = [
                edge.Point(
                    row,
                    rows[row].tolist(),
                    {name: float(values[row]) for name, values in attributes.items()},
                )
                for row in range(start, min(rows.shape[0], start + _QDRANT_PAGE))
            ]
            shard.update(edge.UpdateOperation.upsert_points(points))
        while shard.optimize():
            pass
        shard.flush()
    lines = queries.tolist()
    parameters = edge.SearchParams(hnsw_ef=_QDRANT_EF)

    def search(number: int, asked: dict[str, Any], k: int) -> Any:
        ((name, bounds),) = asked.items()
        bound = edge.RangeFloat(gte=bounds.get("$gte"), lt=bounds.get("$lt"))
        request = edge.QueryRequest(
            limit=k,
            query=edge.Query.Nearest(lines[number]),
            filter=edge.Filter(must=[edge.FieldCondition(name, range=bound)]),
            params=parameters,
        )
        return [point.id for point in shard.query(request)]

    return search


def measured(
    engines: dict[str, Engine],
    scores: Floats,
    attributes: dict[str, Doubles],
    used: Counter[Plan],
    how: tuple[str, float, int],
) -> str:
    """Recall and milliseconds of each engine, for one kind of filter, share and k.

    `used` counts the plans that K9 chooses.
    """
    kind, share, k = how
    hits = dict.fromkeys(engines, 0.0)
    spent = dict.fromkeys(engines, 0.0)
    for number, line in enumerate(scores):
        asked = condition(kind, share, number)
        ((name, bounds),) = asked.items()
        values = attributes[name]
        mask = values < bounds["$lt"] if "$lt" in bounds else values >= bounds["$gte"]
        wanted = min(k, int(np.count_nonzero(mask)))
        least = -np.partition(-line[mask], wanted - 1)[wanted - 1] if wanted else 0.0
        turn = number % len(engines)
        for engine in [*list(engines)[turn:], *list(engines)[:turn]]:
            search = engines[engine]
            start = time.process_time()
            rows = search(number, asked, k)
            spent[engine] += time.process_time() - start
            if not mask[rows].all() or len(set(map(int, rows))) != len(rows):
                sys.exit(f"{engine} found rows that are not allowed, or one twice")
            found = np.count_nonzero(line[rows] >= least - _SLACK)
            hits[engine] += found / wanted if wanted else 1.0
    n = scores.shape[0]
    parts = [f"{hits[each] / n:.4f} {1000 * spent[each] / n:6.2f}" for each in engines]
    plans = " ".join(f"{plan} {count}" for plan, count in sorted(used.items()))
    used.clear()
    return f"{kind:7} {100 * share:6.2f} % {k:4}   {'   '.join(parts)}   {plans}"


def main() -> int:
    """Prints the table; exits 1 where there is no catalogue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--family", choices=get_args(Family), default="hnsw_sq8")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    shares = [0.01, 0.1, 1, 5, 10, 25, 50, 90, 100]
    parser.add_argument("--selectivity", type=float, nargs="+", default=shares, help="percent")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--qdrant", action="store_true")
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    if not given.catalogue.is_file():
        print(f"there is no catalogue at {given.catalogue}: name one with --catalogue PATH")
        return 1
    tried = case(load(given.catalogue), given.rows, "cosine", _TARGET)
    with tempfile.TemporaryDirectory() as temporary:
        run(given, tried, given.directory or Path(temporary))
    return 0


def run(given: argparse.Namespace, tried: Case, directory: Path) -> None:
    """All lines of the table."""
    n = tried.rows.shape[0]
    searcher = opened(tried, given.family, directory / f"{given.family}-{n}")
    set_threads(1)
    attributes = attributes_of(tried.rows)
    writer = ColumnWriter(n, bytes_max=1 << 30)
    for row in range(n):
        writer.append({name: float(values[row]) for name, values in attributes.items()})
    path = directory / f"columns-{n}"
    path.unlink(missing_ok=True)
    writer.write(path)
    columns, queries = Columns(path, n), tried.queries
    chosen = K9(searcher, columns, queries)
    engines: dict[str, Engine] = {"k9": chosen}
    if given.plans:
        plans: list[Plan] = ["scan", "past"]
        if given.family.startswith("hnsw"):
            plans.append("walk")
            engines["select"] = selector(searcher, columns, queries)
        engines |= {plan: K9(searcher, columns, queries, plan) for plan in plans}
    if given.qdrant:
        engines["qdrant"] = qdrant(tried.rows, attributes, queries, directory / f"qdrant-{n}")
    print(f"{given.family}, {n} rows, {given.queries} queries: recall and ms of {list(engines)}")
    scores = queries[: given.queries] @ tried.rows.T
    for k in given.k:
        for kind in ("random", "region"):
            for share in given.selectivity:
                how = (kind, share / 100, k)
                print(measured(engines, scores, attributes, chosen.used, how), flush=True)


if __name__ == "__main__":
    sys.exit(main())
