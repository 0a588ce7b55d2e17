"""Filtered search while many attributes have changed since the build.

    python -m tests.benchmarks.overlaid [--file CATALOGUE.parquet] [--rows 5000] [--k 10]
        [--searches 200] [--directory DIR]

In one process: a version of so many rows with ten attributes each, of which then every price
changes, and once more. Printed are what a change takes to apply, in memory and on the event loop;
the longest pause; the evaluation of filters, and whole searches, before and after, in turns: p50
and p99 in milliseconds of the thread's time, with the number of products that match. What filters
find is held against plain Python. With `--directory` what was built is kept there, and used again.
"""

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, TypeVar

import numpy as np

from api.serving.delta import DeltaBuffer
from api.serving.segment import Segment
from api.serving.snapshot import Snapshot
from core.attributes.filters import parse_filter
from core.attributes.values import Attributes, encode_attributes
from core.index.attribute_rows import AttributesWriter
from core.index.manifest import MANIFEST, decode_manifest
from core.index.rows import RowWriter
from core.index.version import MappedVersion
from core.models import BuildParameters, Embedding, StoredAttributes, now, timestamp
from core.vectors.arrays import Floats
from core.vectors.families import set_threads
from tests.benchmarks.patched import attributes_of
from tests.benchmarks.published import SAMPLE, read
from tests.unit.building import build_here
from worker.building.launcher import thread_count
from worker.building.protocol import BuildSpec

T = TypeVar("T")
FILTERS: tuple[dict[str, Any], ...] = (
    {"price": {"$lt": 1}},
    {"price": {"$lt": 10}},
    {"price": {"$lt": 50}},
    {"category": "category-3"},
    {"brand": {"$in": [f"brand-{n}" for n in range(40)]}, "in_stock": True, "price": {"$lt": 50}},
    {"$not": {"tags": "sale"}},
)
ROUND = 200
"""Changes that a process reads at a time."""


def opened(rows: dict[str, Floats], directory: Path) -> Segment:
    """The version, as a worker builds it, or as it was kept in the directory."""
    out = directory / "out"
    if not (out / MANIFEST).exists():
        dimension = len(next(iter(rows.values())))
        moment = timestamp(now())
        (directory / "rows").mkdir(parents=True, exist_ok=True)
        with closing(RowWriter(directory / "rows", dimension)) as writer:
            writer.append(
                [
                    Embedding(name, "m", row.tobytes(), dimension, moment)
                    for name, row in rows.items()
                ]
            )
        with closing(AttributesWriter(directory / "rows")) as attributes:
            attributes.append(
                [
                    StoredAttributes(name, encode_attributes(attributes_of(number)), moment)
                    for number, name in enumerate(rows)
                ]
            )
        spec = BuildSpec(
            rows_dir=str(directory / "rows"),
            out_dir=str(out),
            model_version="m",
            dimension=dimension,
            metric="cosine",
            parameters=BuildParameters(matrix_k=1),
            threads=thread_count(0),
        )
        build_here(spec)
    manifest = decode_manifest((out / MANIFEST).read_bytes())
    return Segment(MappedVersion.open(out, manifest), 1)


def change_all(buffer: DeltaBuffer, truth: dict[str, Attributes], seed: int) -> list[float]:
    """Changes every price, in rounds; the seconds of each."""
    random = np.random.default_rng(seed)
    names = list(truth)
    random.shuffle(names)
    took = []
    for start in range(0, len(names), ROUND):
        found: dict[str, StoredAttributes | None] = {}
        for name in names[start : start + ROUND]:
            truth[name] = {**truth[name], "price": float(random.integers(997)) / 10}
            text = encode_attributes(truth[name])
            found[name] = StoredAttributes(name, text, timestamp(now()))
        began = thread_time()
        buffer.attributes.apply(found, found)
        buffer.snapshot()
        took.append(thread_time() - began)
    return took


def timed(taken: list[float], work: Callable[..., T], *arguments: Any) -> T:
    """The result of a call, whose milliseconds of this thread are noted."""
    began = thread_time()
    result = work(*arguments)
    taken.append(1e3 * (thread_time() - began))
    return result


def shown(values: list[float]) -> str:
    """p50 and p99."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:7.3f} {ordered[int(0.99 * len(ordered))]:7.3f}"


def check(snapshot: Snapshot, truth: dict[str, Attributes]) -> None:
    """Holds what filters find against plain Python."""
    for asked in FILTERS:
        condition = parse_filter(asked)
        wanted = {name for name, own in truth.items() if condition.matches(own)}
        matching = snapshot.matching(condition)
        found = set(snapshot.segment.ids_of(matching.rows.rows))
        if found != wanted:
            raise SystemExit(f"{asked} finds {len(found)} products, not {len(wanted)}")


def compare(snapshots: dict[str, Snapshot], queries: list[Floats], k: int) -> None:
    """Prints the times of each, query by query in turns."""
    print(f"{'':<46}{'matching':>9}  {'select p50, p99':>15}  {'search p50, p99':>15}")
    for asked in FILTERS:
        condition = parse_filter(asked)
        select: dict[str, list[float]] = {name: [] for name in snapshots}
        search: dict[str, list[float]] = {name: [] for name in snapshots}
        for query in queries:
            for name, snapshot in snapshots.items():
                matching = timed(select[name], snapshot.matching, condition)
                timed(search[name], snapshot.search_matching, [query], k, matching)
        for name, snapshot in snapshots.items():
            count = snapshot.matching(condition).count
            print(
                f"{str(asked)[:34]:<36}{name:<10}{count:>9}  {shown(select[name])}  "
                f"{shown(search[name])}"
            )


def main(plan: argparse.Namespace, directory: Path) -> None:
    """Builds, changes, searches, and prints."""
    set_threads(1)
    everything = read(plan.file)
    names = list(everything)[: plan.rows]
    rows = {name: everything[name] for name in names}
    queries = [everything[name] for name in list(everything)[-plan.searches :]]
    segment = opened(rows, directory)
    buffer = DeltaBuffer(segment)
    snapshots = {"before": Snapshot(segment, buffer.snapshot())}
    truth = {name: attributes_of(number) for number, name in enumerate(rows)}
    check(snapshots["before"], truth)
    for name in ("once", "twice"):
        took = change_all(buffer, truth, len(snapshots))
        print(
            f"{len(truth):,} prices changed: {1e6 * sum(took) / len(truth):.1f} us each, "
            f"{1e3 * max(took):.1f} ms the longest round of {ROUND}; "
            f"{buffer.attributes.resident_bytes / len(truth):.0f} bytes a product"
        )
        snapshots[name] = Snapshot(segment, buffer.snapshot())
    check(snapshots["twice"], truth)
    began = perf_counter()
    asyncio.run(buffer.attributes.compact())
    print(f"compacted in a thread in {1e3 * (perf_counter() - began):.0f} ms")
    snapshots["compacted"] = Snapshot(segment, buffer.snapshot())
    check(snapshots["compacted"], truth)
    print(f"{segment.rows:,} rows, {segment.manifest.index.family}, k {plan.k}; ms")
    compare(snapshots, queries, plan.k)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, default=SAMPLE)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--directory", type=Path)
    chosen = parser.parse_args()
    if chosen.directory is not None:
        main(chosen, chosen.directory)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(chosen, Path(temporary))
