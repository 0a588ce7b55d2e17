"""What attributes add to a version: `python -m tests.benchmarks.columns --file FILE`.

    python -m tests.benchmarks.columns --file FILE [--rows 20000] [--turns 3] [--threads 0]

The worker's own build process builds the same rows, as a pull leaves them on disk, without
attributes and with ten a row, in turns; each turn begins with the other one. Then it builds the
columns of the second version anew, as where only attributes have changed. Ratios are of one turn;
the median and the range of all turns are printed.
"""

import asyncio
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from core.attributes.columns import Columns
from core.attributes.filters import parse_filter
from core.attributes.values import Attributes, encode_attributes
from core.index.attribute_rows import AttributesWriter
from core.index.files import COLUMNS
from core.models import BuildParameters, StoredAttributes
from tests.benchmarks.arguments import site_parser
from tests.benchmarks.build import MODEL, write_rows
from tests.benchmarks.families import load
from tests.benchmarks.figures import Report, ratios
from tests.unit.building import AT, describe
from worker.building.launcher import run_build_process, thread_count
from worker.building.protocol import BuildOutput, BuildSpec

_PAGE: Final = 500
_MIB: Final = 2**20
_SEED: Final = 6


class Run(msgspec.Struct, frozen=True):
    """One build."""

    output: BuildOutput
    seconds: float

    @property
    def bytes(self) -> int:
        """Of the version."""
        return sum(info.bytes for info in self.output.files.values())


def attributes_of(rows: int) -> list[Attributes]:
    """Ten of each row, as a shop may have them."""
    random = np.random.default_rng(_SEED)
    brands = random.zipf(1.3, rows) % 500
    prices = np.round(random.lognormal(3, 1, rows), 2)
    numbers = random.integers(0, 1000, (rows, 6))
    return [
        {
            "title": f"Product {row:06d} of the brand {brand}, in a box of {few[0] % 12}",
            "brand": f"brand-{brand}",
            "category": f"category-{few[1] % 32}",
            "color": f"color-{few[2] % 12}",
            "sizes": [f"size-{few[3] % 8 + step}" for step in range(few[4] % 4)],
            "price": price,
            "stock": few[3],
            "rating": few[4] % 50 / 10,
            "added": 20_000 + row % 1500,
            "sale": few[5] < 150,
        }
        for row, (brand, price, few) in enumerate(
            zip(brands.tolist(), prices.tolist(), numbers.tolist(), strict=True)
        )
    ]


def write_attributes(directory: Path, attributes: list[Attributes]) -> None:
    """The attributes as a pull leaves them."""
    with closing(AttributesWriter(directory)) as writer:
        for start in range(0, len(attributes), _PAGE):
            writer.append(
                [
                    StoredAttributes(f"product-{row:08d}", encode_attributes(own), AT)
                    for row, own in enumerate(attributes[start : start + _PAGE], start)
                ]
            )


def run(spec: BuildSpec) -> Run:
    """A build in a process of its own."""
    began = time.perf_counter()
    spec_file = Path(spec.out_dir).with_suffix(".json")
    output = asyncio.run(run_build_process(spec, spec_file, lambda _: None))
    return Run(output, time.perf_counter() - began)


def compare(catalogue: Path, rows: int, turns: int, threads: int, report: Report) -> None:
    """Prints the table."""
    vectors = load(catalogue)[:rows]
    attributes = attributes_of(len(vectors))
    bare: list[Run] = []
    full: list[Run] = []
    alone: list[Run] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_rows(directory / "bare", vectors)
        write_rows(directory / "full", vectors)
        write_attributes(directory / "full", attributes)
        for turn in range(turns):
            made = {
                kind: BuildSpec(
                    rows_dir=str(directory / kind),
                    out_dir=str(directory / f"{kind}-{turn}"),
                    model_version=MODEL,
                    dimension=vectors.shape[1],
                    metric="cosine",
                    threads=threads,
                    parameters=BuildParameters(),
                )
                for kind in ("bare", "full")
            }
            order = [(bare, made["bare"]), (full, made["full"])]
            for runs, spec in order if turn % 2 == 0 else order[::-1]:
                runs.append(run(spec))
            describe(made["full"], full[-1].output)
            alone.append(run(msgspec.structs.replace(made["full"], columns_only=True)))
            assert alone[-1].output.files[COLUMNS].sha256 == full[-1].output.files[COLUMNS].sha256
            print(f"turn {turn + 1}: {bare[-1].seconds:.1f} s, with {full[-1].seconds:.1f} s")
        _check(directory / f"full-{turns - 1}" / COLUMNS, attributes)
    _report(bare, full, alone, report)


def _check(path: Path, attributes: list[Attributes]) -> None:
    """The columns are those of the rows, and a filter finds the right ones."""
    columns = Columns(path, len(attributes))
    assert [columns.attributes(row) for row in range(len(attributes))] == attributes
    wanted = [own["sale"] is True and own["brand"] == "brand-1" for own in attributes]
    assert columns.select(parse_filter({"sale": True, "brand": "brand-1"})).tolist() == wanted


def _report(bare: list[Run], full: list[Run], alone: list[Run], report: Report) -> None:
    last = full[-1].output
    rows = last.counts.rows
    print(f"{rows:,} rows, {last.index.family}, {last.software.threads} threads")
    report.add("version without attributes", [each.bytes / _MIB for each in bare], "MiB")
    report.add("version with attributes", [each.bytes / _MIB for each in full], "MiB")
    both = [[each.bytes for each in runs] for runs in (full, bare)]
    report.add("version with attributes to without", ratios(*both))
    report.add(
        "size of the columns", [e.output.files[COLUMNS].bytes / rows for e in full], "bytes a row"
    )
    for what, runs in (("without", bare), ("with", full), ("columns alone", alone)):
        used = [each.output.usage.processor_s for each in runs]
        report.add(f"build {what}, processor time", used, "s")
        report.add(f"build {what}", [each.seconds for each in runs], "s")
    processor = [[each.output.usage.processor_s for each in runs] for runs in (full, bare)]
    report.add("build with attributes to without, processor time", ratios(*processor))
    report.add(
        "build with attributes to without", ratios(*([e.seconds for e in r] for r in (full, bare)))
    )
    stages = [each.output.stages["files"] for each in alone]
    report.add("building the columns", [1e6 * stage / rows for stage in stages], "us a row")


def main() -> int:
    """Prints the table."""
    parser = site_parser(__doc__, turns=3)
    parser.set_defaults(rows=20_000)
    parser.add_argument("--threads", type=int, default=0, help="0 for every core")
    given = parser.parse_args()
    report = Report()
    compare(given.file, given.rows, given.turns, thread_count(given.threads), report)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
