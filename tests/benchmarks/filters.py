"""Filtered search by selectivity: `python -m tests.benchmarks.filters --catalogue FILE`.

    python -m tests.benchmarks.filters --catalogue FILE [--rows 10000] [--k 10 100]
        [--family hnsw_sq8] [--selectivity 0.01 0.1 1 5 10 25 50 90 100] [--queries 200]
        [--turns 5] [--kinds random region] [--skip 0] [--seed 5] [--plans]
        [--qdrant ENVIRONMENT/bin/python] [--directory DIR]

Two kinds of filters: `random` has nothing to do with the vectors; `region` goes along with them: it
allows the rows nearest to a row drawn at random, or those furthest from it. Queries are in no
build. Recall is against exact search over the rows that match, over as many as there are, up to k.
`--skip` leaves out the first of them, and another `--seed` draws other filters: the estimates of
plans were set with the first 200 and seed 5.

K9 is asked as a request asks it: the filter is parsed, the products that match are found, and the
snapshot is searched among them. Milliseconds are processor time of one search on one thread and one
core; each engine answers all queries of a line in turn, `--turns` times, and the median of the
turns and their range are printed, of the ratio of both in each turn too. `--plans` measures each
plan besides the chosen one; `select` is a selector inside FAISS's own search of the graph.
`--qdrant` measures Qdrant's engine too (`edge.py`, qdrant-edge-py in an environment of its own).
With `--directory` what was built is kept there, and used again. `OMP_NUM_THREADS` and
`OPENBLAS_NUM_THREADS` have to be 1, as an API process sets them.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import faiss as _faiss
import msgspec
import numpy as np

from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core.attributes.column_writer import ColumnWriter
from core.attributes.columns import Columns
from core.attributes.filters import parse_filter
from core.index import files
from core.index.manifest import Counts, Manifest, MatrixInfo, Software
from core.index.version import IdTable, MappedVersion
from core.models import BuildParameters, Family, now, timestamp
from core.stalls import freeze_memory
from core.vectors.arrays import Doubles, Floats
from core.vectors.builder import build_index
from core.vectors.families import search_parameters, set_threads
from core.vectors.filtered import Allowed, FilteredSearcher, Plan
from core.vectors.parameters import IndexInfo, IndexLimits, Recall
from core.vectors.search import Searcher
from tests.benchmarks.families import Case, case, load, mapped
from worker.building.launcher import thread_count

faiss: Final[Any] = _faiss
_CORE: Final = 0
_TARGET: Final = 0.95
_REGIONS: Final = 4
_SEED: Final = 5
_SLACK: Final = 1e-6
"""Scores of float32 products may be off by so much."""
_QDRANT_EF: Final = 64
_INFO: Final = "info.json"


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A query under a filter, as Qdrant's engine is asked it."""

    number: int
    name: str
    at_least: float | None
    below: float | None

    @property
    def filter(self) -> dict[str, Any]:
        """The same as K9 is asked it."""
        bounds = {"$gte": self.at_least, "$lt": self.below}
        return {self.name: {key: bound for key, bound in bounds.items() if bound is not None}}


Engine = Callable[[list[Asked], int], tuple[list[list[int]], float]]
"""Rows found for each question, k at the most, and processor milliseconds of one of them."""


def attributes_of(rows: Floats, seed: int = _SEED) -> dict[str, Doubles]:
    """Numbers in [0, 1), each as often: one at random, the others the rank by nearness to a row."""
    random = np.random.default_rng(seed)
    n = rows.shape[0]
    centers = random.choice(n, _REGIONS, replace=False)
    found = {"random": random.permutation(n) / n}
    for number, center in enumerate(centers):
        rank = np.empty(n)
        rank[np.argsort(-(rows @ rows[center]), kind="stable")] = np.arange(n) / n
        found[f"region{number}"] = rank
    return found


def question(kind: str, share: float, number: int) -> Asked:
    """Query number i under a filter that allows this share of the rows."""
    if kind == "random":
        return Asked(number, "random", None, share)
    name = f"region{number % _REGIONS}"
    nearest = number // _REGIONS % 2 == 0
    return Asked(number, name, None, share) if nearest else Asked(number, name, 1 - share, None)


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


def columns_of(attributes: dict[str, Doubles], n: int, directory: Path) -> Columns:
    """The columns of a version whose rows have these numbers."""
    path = directory / files.COLUMNS
    if not path.exists():
        writer = ColumnWriter(n, bytes_max=1 << 30)
        for row in range(n):
            writer.append({name: float(values[row]) for name, values in attributes.items()})
        writer.write(path)
    return Columns(path, n)


def snapshot_of(searcher: Searcher, columns: Columns, directory: Path) -> Snapshot:
    """What answers requests, over a version of these; a product's id is its row, in digits."""
    n, moment = searcher.n, timestamp(now())
    files.write_ids(directory / files.IDS, [b"%08d" % row for row in range(n)])
    manifest = Manifest(
        model_version="m",
        build_id="b",
        epoch=0,
        built_at=moment,
        watermark=moment,
        dimension=searcher.d,
        metric=searcher.metric,
        counts=Counts(n),
        parameters=BuildParameters(),
        index=searcher.info,
        recall=Recall(_TARGET, 10, _TARGET, 0, ""),
        matrix=MatrixInfo(1, exact=True, recall=1.0),
        files={},
        resident_bytes=0,
        software=Software("", "", "", "", 1),
        rows_with_attributes=n,
    )
    near = np.full((n, 1), -1, dtype=np.int32), np.zeros((n, 1), dtype=np.float32)
    ids = IdTable(directory / files.IDS)
    return Snapshot(Segment(MappedVersion(manifest, ids, searcher, *near, columns), 1))


def k9(snapshot: Snapshot, queries: Floats, used: Counter[Plan]) -> Engine:
    """K9's search as a request has it, from the decoded filter to product ids and scores.

    `used` counts the plans.
    """

    def search(asked: list[Asked], k: int) -> tuple[list[list[int]], float]:
        bodies = [(each.filter, queries[each.number]) for each in asked]
        plans: list[Plan] = []
        answers = []
        began = time.process_time()
        for body, query in bodies:
            matching = snapshot.matching(parse_filter(body))
            answers.append(snapshot.search_matching([query], k, matching, used=plans)[0][0])
        spent = time.process_time() - began
        used.update(plans)
        return [[*map(int, hits.product_ids)] for hits in answers], 1000 * spent / len(asked)

    return search


def one_plan(searcher: Searcher, columns: Columns, queries: Floats, plan: Plan) -> Engine:
    """K9's search by one plan, whatever would be chosen."""
    filtered = FilteredSearcher(searcher)

    def search(asked: list[Asked], k: int) -> tuple[list[list[int]], float]:
        bodies = [(each.filter, queries[each.number]) for each in asked]
        began = time.process_time()
        found = [
            filtered.search_one(query, k, Allowed(columns.select(parse_filter(body))), plan=plan)
            for body, query in bodies
        ]
        spent = time.process_time() - began
        return [each.rows.tolist() for each in found], 1000 * spent / len(asked)

    return search


def selector(searcher: Searcher, columns: Columns, queries: Floats) -> Engine:
    """A selector inside FAISS's search of the graph, as broad as Qdrant's."""
    order = searcher.order

    def search(asked: list[Asked], k: int) -> tuple[list[list[int]], float]:
        found = []
        began = time.process_time()
        for each in asked:
            mask = columns.select(parse_filter(each.filter))[order]
            parameters = search_parameters(searcher.info.family, max(_QDRANT_EF, k))
            bits = np.packbits(mask, bitorder="little")
            parameters.sel = chosen = faiss.IDSelectorBitmap(bits)
            query = queries[each.number : each.number + 1]
            positions = searcher.index.search(query, k, params=parameters)[1][0]
            del chosen
            found.append(searcher.rows_at(positions[positions >= 0]).tolist())
        return found, 1000 * (time.process_time() - began) / len(asked)

    return search


@contextmanager
def qdrant(
    python: Path, tried: Case, attributes: dict[str, Doubles], directory: Path
) -> Iterator[Engine]:
    """Qdrant's engine over the same rows, in a process of its own until the end of the block."""
    directory.mkdir(parents=True, exist_ok=True)
    np.save(directory / "vectors.npy", tried.rows)
    np.save(directory / "queries.npy", tried.queries)
    np.savez(directory / "attributes.npz", **attributes)  # type: ignore[arg-type]
    script = Path(__file__).with_name("edge.py")
    words = [str(python), str(script), str(directory), str(_CORE)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asking, answers = process.stdin, process.stdout

        def told() -> Any:
            line = answers.readline()
            if not line:
                sys.exit("Qdrant's engine has ended")
            return msgspec.json.decode(line)

        def search(asked: list[Asked], k: int) -> tuple[list[list[int]], float]:
            asking.write(msgspec.json.encode({"k": k, "ef": _QDRANT_EF, "asked": asked}) + b"\n")
            asking.flush()
            answer = told()
            return answer["ids"], answer["ms"]

        print(f"Qdrant's engine: {told()}", flush=True)
        yield search
        asking.close()


def recall_of(
    asked: list[Asked],
    k: int,
    scores: Floats,
    attributes: dict[str, Doubles],
    found: list[list[int]],
) -> float:
    """The mean; ends this process where a row is not allowed, or comes twice."""
    recalls = []
    for each, rows in zip(asked, found, strict=True):
        values, line = attributes[each.name], scores[each.number]
        mask = np.ones(values.shape[0], dtype=np.bool_)
        if each.at_least is not None:
            mask &= values >= each.at_least
        if each.below is not None:
            mask &= values < each.below
        wanted = min(k, int(np.count_nonzero(mask)))
        if not mask[rows].all() or len(set(rows)) != len(rows) or len(rows) > wanted:
            sys.exit(f"rows that are not allowed, too many or one twice: {each}")
        least = -np.partition(-line[mask], wanted - 1)[wanted - 1] if wanted else 0.0
        hits = np.count_nonzero(line[rows] >= least - _SLACK)
        recalls.append(hits / wanted if wanted else 1.0)
    return statistics.fmean(recalls)


def line_of(
    engines: dict[str, Engine],
    asked: list[Asked],
    k: int,
    turns: int,
    recall: Callable[[list[list[int]]], float],
) -> str:
    """Recall, median milliseconds and their range, of each engine; the first turn warms up."""
    spent: dict[str, list[float]] = {name: [] for name in engines}
    recalls = {}
    for turn in range(turns + 1):
        names = list(engines) if turn % 2 else [*reversed(engines)]
        for name in names:
            found, ms = engines[name](asked, k)
            if turn:
                spent[name].append(ms)
            else:
                recalls[name] = recall(found)
    medians = {name: statistics.median(ms) for name, ms in spent.items()}
    parts = [
        f"{recalls[name]:.3f} | {medians[name]:.3f} ({min(ms):.3f} to {max(ms):.3f})"
        for name, ms in spent.items()
    ]
    if "qdrant" in engines:
        ratios = [own / other for own, other in zip(spent["k9"], spent["qdrant"], strict=True)]
        parts.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return " | ".join(parts)


def run(given: argparse.Namespace, tried: Case, directory: Path) -> None:
    """All lines of the table."""
    n = tried.rows.shape[0]
    version = directory / f"{given.family}-{n}"
    searcher = opened(tried, given.family, version)
    attributes, queries = attributes_of(tried.rows, given.seed), tried.queries
    filters = directory / f"columns-{n}-{given.seed}"
    filters.mkdir(parents=True, exist_ok=True)
    columns = columns_of(attributes, n, filters)
    used: Counter[Plan] = Counter()
    engines = {"k9": k9(snapshot_of(searcher, columns, version), queries, used)}
    if given.plans:
        plans: list[Plan] = ["scan", "past"]
        if given.family.startswith("hnsw"):
            plans.append("walk")
            engines["select"] = selector(searcher, columns, queries)
        engines |= {plan: one_plan(searcher, columns, queries, plan) for plan in plans}
    with ExitStack() as stack:
        if given.qdrant is not None:
            path = directory / f"qdrant-{n}-{given.seed}"
            engines["qdrant"] = stack.enter_context(qdrant(given.qdrant, tried, attributes, path))
        set_threads(1)
        freeze_memory()  # as an API process, which would visit all objects now and then
        os.sched_setaffinity(0, {_CORE})
        print(f"{given.family}, {n} rows, {given.queries} queries, {given.turns} turns")
        head = " | ".join(f"{name}: recall | ms" for name in engines)
        print(f"| filter, rows allowed | k | {head} |{' ratio |' * ('qdrant' in engines)} plans |")
        scores = queries[: given.queries] @ tried.rows.T
        for k in given.k:
            for kind in given.kinds:
                for share in given.selectivity:
                    asked = [question(kind, share / 100, i) for i in range(given.queries)]
                    recall = partial(recall_of, asked, k, scores, attributes)
                    line = line_of(engines, asked, k, given.turns, recall)
                    plans_used = ", ".join(f"{plan} {used[plan]}" for plan in sorted(used))
                    used.clear()
                    print(f"| {kind}, {share:g} % | {k} | {line} | {plans_used} |", flush=True)


def main() -> int:
    """Prints the table; exits 1 where there is no catalogue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--family", choices=get_args(Family), default="hnsw_sq8")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--kinds", nargs="+", choices=["random", "region"])
    shares = [0.01, 0.1, 1, 5, 10, 25, 50, 90, 100]
    parser.add_argument("--selectivity", type=float, nargs="+", default=shares, help="percent")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--skip", type=int, default=0, help="queries")
    parser.add_argument("--seed", type=int, default=_SEED, help="of filters")
    parser.add_argument("--plans", action="store_true")
    parser.add_argument("--qdrant", type=Path, help="Python with qdrant-edge-py")
    parser.add_argument("--directory", type=Path)
    given = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if os.environ.get(name) != "1":
            print(f"set {name}=1: what idle threads take would be counted as time of searches")
            return 1
    given.kinds = given.kinds or ["random", "region"]
    if not given.catalogue.is_file():
        print(f"there is no catalogue at {given.catalogue}: name one with --catalogue PATH")
        return 1
    tried = case(load(given.catalogue), given.rows, "cosine", _TARGET)
    tried = msgspec.structs.replace(tried, queries=tried.queries[given.skip :])
    with tempfile.TemporaryDirectory() as temporary:
        run(given, tried, given.directory or Path(temporary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
