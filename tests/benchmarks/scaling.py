"""How K9 does as the rows grow, beside raw FAISS, in tables and logarithmic plots.

    python -m tests.benchmarks.scaling --file CATALOGUE.parquet --to DIRECTORY
        [--rows 10000,100000,300000,1000000] [--only PART,...] [--turns 3] [--seconds 3]
        [--budget-mib 96]

As `make scaling ARGS="--file ..."`, which installs what the plot needs. Rows above those of the
catalogue are made from them (`tests.benchmarks.grown`). At each number of rows these parts are
measured, one after the other:

    build    every stage, in the worker's own build process, and raw FAISS in turns
             (`tests.benchmarks.build`)
    pull     from canned pages, beside the stock client (`tests.benchmarks.pull`): an emulator's
             reads grow faster than the rows
    serve    the version built above, published on an emulator, served by the API on one core:
             throughput and p99 (wrk, as `tests.benchmarks.http_search`), raw FAISS on the same
             index, recall@10, memory, and the start of a process with the version in its cache
    budget   the index chosen for a small memory budget: family, size, recall@10, time of a search

What a part measured is kept in `ROWS-PART.json` of the directory as soon as it is done, and
`scaling.md` and `scaling.svg` are written anew. A part that is there is not measured again: a run
that was broken off goes on with what is left, and a file that is removed is measured anew. The
version that `build` makes stays in `ROWS/` until `serve` is done. A part that fails ends the
command with 1 after the other parts and rows were measured.
"""

import argparse
import asyncio
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from core.index.files import INDEX
from core.models import now, timestamp
from core.vectors.arrays import Floats
from tests.benchmarks.arguments import existing
from tests.benchmarks.build import VERSION, compare
from tests.benchmarks.exact import QUERIES
from tests.benchmarks.families import load as load_catalogue
from tests.benchmarks.figures import Figure, Report
from tests.benchmarks.grown import grown, ids_of
from tests.benchmarks.growth import Part, markdown, panels
from tests.benchmarks.machine import commit, load, machine
from tests.benchmarks.plots import plot_growth
from tests.benchmarks.pull import add, measure_both
from tests.benchmarks.sent import queries_of
from tests.benchmarks.served import serve
from tests.benchmarks.small_budget import measure_budget
from tests.emulators import CREDENTIALS
from worker.building.launcher import thread_count
from worker.building.protocol import BuildOutput

OUTPUT: Final = "output.json"
PARTS: Final = ("build", "pull", "serve", "budget")
ROWS: Final = (10_000, 100_000, 300_000, 1_000_000)
_THREADS: Final = "OPENBLAS_NUM_THREADS"
Notes = dict[str, str]


class Size:
    """One number of rows, and the directory of its version."""

    def __init__(self, rows: int, real: Floats, plan: argparse.Namespace) -> None:
        self.rows = rows
        self._real = real
        self._plan = plan
        self._directory = plan.to / str(rows)

    def measure(self, part: str) -> Part:
        """One part.

        Raises:
            Exception: whatever made it fail.
        """
        measured: dict[str, Callable[[Report, Notes], None]] = {
            "build": self._build,
            "pull": self._pull,
            "serve": self._serve,
            "budget": self._budget,
        }
        report = Report()
        notes: Notes = {}
        load_before, began_at, began = load(), timestamp(now()), time.perf_counter()
        measured[part](report, notes)
        return Part(
            name=part,
            rows=self.rows,
            figures=report.figures,
            notes=notes,
            began_at=began_at,
            seconds=time.perf_counter() - began,
            load_before=load_before,
            load_after=load(),
            machine=machine(),
            commit=commit(),
        )

    def _vectors(self) -> Floats:
        return grown(self._real, self.rows)

    def _build(self, report: Report, notes: Notes) -> None:
        """Leaves the version in the directory."""
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        output = compare(
            self._vectors(), self._directory, self._plan.turns, thread_count(0), report
        )
        (self._directory / OUTPUT).write_bytes(msgspec.json.encode(output))
        shutil.rmtree(self._directory / "rows")
        (self._directory / "raw.npy").unlink()
        notes["index family"] = output.index.family
        if INDEX in output.files:  # the family exact has none
            report.add("index: size", [output.files[INDEX].bytes / 1e6], "MB")

    def _pull(self, report: Report, _notes: Notes) -> None:
        add(report, "pull", measure_both(self.rows, self._plan.turns))

    def _serve(self, report: Report, _notes: Notes) -> None:
        """Removes the version afterwards."""
        kept = self._directory / OUTPUT
        if not kept.exists():
            self._build(Report(), {})
        output = msgspec.json.decode(kept.read_bytes(), type=BuildOutput)
        version = self._directory / VERSION
        plan = self._plan
        asyncio.run(serve(self._vectors(), version, output, plan.turns, plan.seconds, report))
        shutil.rmtree(self._directory)

    def _budget(self, report: Report, notes: Notes) -> None:
        """In a process of its own, in which numpy has one thread for products, as in the API."""
        spawned = multiprocessing.get_context("spawn")
        with one_thread(), ProcessPoolExecutor(1, mp_context=spawned) as processes:
            asked = (self._real, self.rows, self._plan.budget_mib * 2**20, self._plan.turns)
            family, figures = processes.submit(_measure_budget, *asked).result()
        report.figures += figures
        notes[f"index family in {self._plan.budget_mib} MiB"] = family


def _measure_budget(real: Floats, count: int, budget: int, turns: int) -> tuple[str, list[Figure]]:
    report = Report()
    vectors = grown(real, count)
    rows = dict(zip(ids_of(count), vectors, strict=True))
    family = measure_budget(vectors, queries_of(rows)[:QUERIES], budget, turns, report)
    return family, report.figures


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes that are started meanwhile have one thread for products of numpy."""
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_THREADS]
        if before is not None:
            os.environ[_THREADS] = before


def kept(directory: Path) -> dict[tuple[int, str], Part]:
    """What was measured, by rows and part."""
    parts = [
        msgspec.json.decode(path.read_bytes(), type=Part)
        for path in sorted(directory.glob("*-*.json"))
    ]
    return {(part.rows, part.name): part for part in parts}


def write(directory: Path, real_rows: int) -> None:
    """Table and plot of all that the directory has."""
    parts = list(kept(directory).values())
    (directory / "scaling.md").write_text(markdown(parts, real_rows), encoding="utf-8")
    plot_growth(panels(parts), directory / "scaling.svg")


def keep(directory: Path, part: Part) -> None:
    """Writes a part, whole or not at all."""
    path = directory / f"{part.rows}-{part.name}.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(msgspec.json.encode(part))
    unfinished.replace(path)


def run(plan: argparse.Namespace) -> int:
    """Measures what is not there yet; the exit status."""
    plan.to.mkdir(parents=True, exist_ok=True)
    real = load_catalogue(plan.file)
    failed = []
    for rows in plan.rows:
        size = Size(rows, real, plan)
        for part in plan.only:
            if (rows, part) in kept(plan.to):
                print(f"--- {part} of {rows:,} rows is there", flush=True)
                continue
            print(f"--- {part} of {rows:,} rows", flush=True)
            try:
                measured = size.measure(part)
            except (Exception, SystemExit):  # noqa: BLE001 - the other parts are measured all the same
                traceback.print_exc()
                failed.append(f"{part} of {rows:,} rows")
                continue
            keep(plan.to, measured)
            write(plan.to, len(real))
    for each in failed:
        print(f"FAILED: {each}")
    print(plan.to / "scaling.md")
    return 1 if failed else 0


def _counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _parts(text: str) -> list[str]:
    asked = text.split(",")
    if unknown := [part for part in asked if part not in PARTS]:
        raise argparse.ArgumentTypeError(
            f"there is no part {', '.join(unknown)}: there are {', '.join(PARTS)}"
        )
    return asked


def main() -> int:
    """Reads the arguments, and measures; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=existing, required=True, help="a catalogue as Parquet")
    parser.add_argument("--to", type=Path, required=True, help="a directory for what was measured")
    parser.add_argument("--rows", type=_counts, default=list(ROWS), help="as 10000,100000")
    parser.add_argument("--only", type=_parts, default=list(PARTS), help="parts, as build,pull")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each kind in a turn")
    parser.add_argument("--budget-mib", type=int, default=96, help="of the small memory budget")
    os.environ |= CREDENTIALS
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
