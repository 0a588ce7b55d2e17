"""Each stage of a build beside raw FAISS: `python -m tests.benchmarks.build --catalogue FILE`.

    python -m tests.benchmarks.build --catalogue FILE [--rows 20000] [--turns 5] [--threads 0]
        [--whole]

The build process is the worker's own, over rows as a pull leaves them on disk; raw FAISS is a
process of its own too, with as many threads. The two take turns. Raw FAISS makes the same kind of
index: it trains, adds all rows but 1,000, finds the least efSearch that reaches the target for
those by doubling and by eight steps between, and adds them. For the matrix it is one `faiss.knn` of
all rows; above 100,000, one of 100,000 of them with all, and the time of all in proportion. Ratios
are of one turn; the median and the range of all turns are printed.

With `--whole` the rows are then stored in an emulator, and a worker of its own builds from there:
the stages of that build are printed, pull and upload too.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import faiss as _faiss
import msgspec
import numpy as np

from core.index.manifest import Manifest
from core.index.rows import RowWriter
from core.models import BuildParameters, Embedding, now, timestamp
from core.vectors.arrays import Floats, prepare
from core.vectors.families import create_index, plan_index, search_parameters, set_threads
from tests.benchmarks.families import load
from tests.benchmarks.figures import Report, at_most, ratios
from tests.benchmarks.published import read
from tests.benchmarks.stock import published, store
from tests.emulators import CREDENTIALS
from tests.faults.site import open_site
from worker.building.launcher import run_build_process, thread_count
from worker.building.protocol import BuildOutput, BuildSpec

faiss: Final[Any] = _faiss
MODEL: Final = "built"
VERSION: Final = "version"
"""The directory of a version's files."""
TARGET: Final = 0.95
MATRIX_K: Final = 20
INDEX_RATIO_MAX: Final = 1.25
MATRIX_RATIO_MAX: Final = 1.1
WHOLE_S_MAX: Final = 90.0
"""For 100,000 rows on two cores."""
_HELD_OUT: Final = 1000
_MATRIX_ROWS: Final = 100_000
"""Of which the matrix by raw FAISS is made, at the most."""
_K: Final = 10
_SELF: Final = (sys.executable, "-m", "tests.benchmarks.build")


class Raw(msgspec.Struct, frozen=True):
    """Seconds of raw FAISS."""

    train: float
    tune: float
    add: float
    matrix: float

    @property
    def index(self) -> float:
        """All that the index takes."""
        return self.train + self.tune + self.add


def write_rows(directory: Path, vectors: Floats) -> None:
    """The rows as a pull leaves them."""
    at = timestamp(now())
    with closing(RowWriter(directory, vectors.shape[1])) as writer:
        for start in range(0, vectors.shape[0], 500):
            writer.append(
                [
                    Embedding(f"product-{start + line:08d}", MODEL, row.tobytes(), row.shape[0], at)
                    for line, row in enumerate(vectors[start : start + 500])
                ]
            )


def ours(rows: Path, out: Path, dimension: int, threads: int) -> BuildOutput:
    """A build of these rows, in the process that a worker starts."""
    spec = BuildSpec(
        rows_dir=str(rows),
        out_dir=str(out / VERSION),
        model_version=MODEL,
        dimension=dimension,
        metric="cosine",
        threads=threads,
        parameters=BuildParameters(target_recall=TARGET, matrix_k=MATRIX_K),
    )
    return asyncio.run(run_build_process(spec, out / "spec.json", lambda _: None))


def raw(vectors: Path, family: str, threads: int) -> Raw:
    """The same by FAISS alone, in a process of its own."""
    words = [*_SELF, "--raw", str(vectors), "--family", family, "--threads", str(threads)]
    found = subprocess.run(
        words, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)}
    )
    return msgspec.json.decode(found.stdout, type=Raw)


def measure_raw(path: Path, family: Any, threads: int) -> Raw:
    """Seconds of each part, in this process."""
    set_threads(threads)
    rows = np.load(path)
    order = np.random.default_rng(1).permutation(rows.shape[0])
    held, rest = rows[order[:_HELD_OUT]], rows[order[_HELD_OUT:]]
    plan = plan_index(family, rows.shape[0], rows.shape[1], "cosine", 1.0)
    index = create_index(plan)
    train = seconds(lambda: index.train(rest))
    add = seconds(lambda: index.add(rest))
    tune = seconds(lambda: _tune(index, family, held, rest))
    add += seconds(lambda: index.add(held))
    asked = rows[:_MATRIX_ROWS]

    def knn() -> object:
        return faiss.knn(asked, rows, MATRIX_K + 1, metric=faiss.METRIC_INNER_PRODUCT)

    matrix = seconds(knn) * len(rows) / len(asked)
    return Raw(train=train, tune=tune, add=add, matrix=matrix)


def _tune(index: Any, family: Any, queries: Floats, rows: Floats) -> int:
    """The least breadth that reaches the target."""
    _, truth = faiss.knn(queries, rows, _K, metric=faiss.METRIC_INNER_PRODUCT)

    def reached(breadth: int) -> bool:
        _, found = index.search(queries, _K, params=search_parameters(family, breadth))
        hits = (found[:, :, None] == truth[:, None]).any(axis=2)
        return float(hits.mean()) >= TARGET

    breadth = below = _K
    while not reached(breadth) and breadth < rows.shape[0]:
        below, breadth = breadth, 2 * breadth
    between = range(below, breadth, max(1, (breadth - below) // 8))
    return next((ef for ef in between if reached(ef)), breadth)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(
    vectors: Floats, directory: Path, turns: int, threads: int, report: Report
) -> BuildOutput:
    """All turns, and the report; the version of the last turn is left in `directory / VERSION`."""
    outputs: list[BuildOutput] = []
    raws: list[Raw] = []
    write_rows(directory / "rows", vectors)
    np.save(directory / "raw.npy", prepare(vectors, "cosine"))
    for turn in range(turns):
        shutil.rmtree(directory / VERSION, ignore_errors=True)
        outputs.append(ours(directory / "rows", directory, vectors.shape[1], threads))
        raws.append(raw(directory / "raw.npy", outputs[-1].index.family, threads))
        print(f"turn {turn + 1}: {outputs[-1].stages} {raws[-1]}", flush=True)
    last = outputs[-1]
    print(
        f"{len(vectors):,} rows of {vectors.shape[1]}, {last.index.family}, {threads} threads, "
        f"{turns} turns; FAISS {last.software.faiss} {last.software.simd}; recall "
        f"{last.recall.value:.4f}, efforts {[msgspec.to_builtins(e) for e in last.index.efforts]}"
    )
    for stage in last.stages:
        report.add(f"build stage {stage}", [output.stages[stage] for output in outputs], "s")
    report.add("build, all stages", [sum(output.stages.values()) for output in outputs], "s")
    report.add("build, processor time", [output.usage.processor_s for output in outputs], "s")
    report.add("build, peak memory", [output.usage.peak_bytes / 1e6 for output in outputs], "MB")
    for part in ("train", "tune", "add", "index", "matrix"):
        report.add(f"raw FAISS {part}", [getattr(found, part) for found in raws], "s")
    index = ratios(
        [output.stages["index"] + output.stages.get("recall", 0.0) for output in outputs],
        [found.index for found in raws],
    )
    matrix = ratios(
        [output.stages["matrix"] for output in outputs], [found.matrix for found in raws]
    )
    report.add("build: index and recall to raw FAISS", index, target=at_most(INDEX_RATIO_MAX))
    report.add("build: matrix to faiss.knn", matrix, target=at_most(MATRIX_RATIO_MAX))
    return last


async def whole(catalogue: Path, rows: int, report: Report) -> None:
    """Builds from an emulator, and reports the stages."""
    chosen = dict(list(read(catalogue).items())[:rows])
    os.environ.update(CREDENTIALS)
    # The emulator answers one at a time: a heartbeat waits behind the pages of a large pull.
    async with open_site(K9_LEASE_S="180") as site:
        for part in ("worker-1", "api"):  # one worker is enough, and builds with nothing beside it
            await site.parts[part].stop()
        await store(site.resources, MODEL, chosen)
        began = time.perf_counter()
        build = await published(site.resources, MODEL)
        took = time.perf_counter() - began
    manifest = msgspec.convert(build.manifest, Manifest)
    for stage, spent in manifest.stages.items():
        report.add(f"from an emulator, stage {stage}", [spent], "s")
    print(json.dumps(manifest.cost))
    target = at_most(WHOLE_S_MAX * max(1.0, rows / 100_000))
    name = f"from an emulator, {len(chosen):,} rows, request to publication"
    report.add(name, [took], "s", target)


def main() -> int:
    """Prints the tables; exits 1 where a figure is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalogue", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 for every core")
    parser.add_argument("--whole", action="store_true", help="from an emulator too")
    parser.add_argument("--raw", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--family", help=argparse.SUPPRESS)
    given = parser.parse_args()
    threads = thread_count(given.threads)
    if given.raw is not None:
        print(msgspec.json.encode(measure_raw(given.raw, given.family, threads)).decode())
        return 0
    if given.catalogue is None or not given.catalogue.is_file():
        print("name a catalogue with --catalogue FILE.parquet")
        return 2
    report = Report()
    if given.turns:
        vectors = load(given.catalogue)[: given.rows]
        with tempfile.TemporaryDirectory() as directory:
            compare(vectors, Path(directory), given.turns, threads, report)
    if given.whole:
        asyncio.run(whole(given.catalogue, given.rows, report))
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
