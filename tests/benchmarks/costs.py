"""What K9 costs a month in an account, by the number of embeddings: `deploy/docs/costs.md`.

    python -m tests.benchmarks.costs [--write]

Units are measured: an item by the code that stores it, a version's files by a build of the sample
catalogue (384 numbers a row), scaled by rows. Prices are those of `deploy/aws/prices.py`.
"""

import argparse
import math
import tempfile
import textwrap
from pathlib import Path
from typing import Any, Final

import msgspec

from core.dynamo.wire import RequestItem
from core.index import files
from core.index.manifest import Manifest
from core.index.rows import RowWriter
from core.index.version import mapped_files
from core.models import Embedding, Family, Model
from core.repositories.embedding_rows import live_row
from core.vectors.families import plan_index
from core.vectors.parameters import IndexLimits
from deploy.aws import prices
from tests.benchmarks.published import SAMPLE, read
from tests.templates import read_template
from tests.unit.building import AT, build_here
from worker.building.protocol import BuildSpec

ROWS: Final = (100_000, 10_000_000, 1_000_000_000)
DIMENSION: Final = 384
PAGE: Final = Path(__file__).parents[2] / "deploy" / "docs" / "costs.md"
_CHANGED_A_DAY: Final = 0.01
_BUILDS_A_DAY: Final = 1
_VERSIONS_KEPT: Final = 5
_API_TASKS: Final = 2
_ITEM_OVERHEAD_BYTES: Final = 100
"""That DynamoDB adds to each item, in the table and in an index, for what it stores."""
_WRITE_UNIT_BYTES: Final = 1024
_EVENTUAL_READ_UNIT_BYTES: Final = 2 * 4096
_FARGATE_DISK_BYTES: Final = 200 * 1024**3
_DISK_INCLUDED_GB: Final = 20
_NOT_IN_IT: Final = """Not in it: the way out of private subnets (a NAT gateway is 33 a month, and
    0.045 a GB), answers to the internet, logs, alarms, the firewall."""
_HOW_MEASURED: Final = """The sample catalogue's 5,000 rows, by the code that stores them and by a
    build of them. An item is {units} write units in the table, and in `ModelVersionIndex` again. A
    changed row moves in that index, which takes two writes there, so a change is three times an
    item's units. A build pulls every row through the index, eventually consistent: 8 KB a unit. The
    index file is what `core/vectors/families.py` plans for that many rows."""


class Measured(msgspec.Struct, frozen=True):
    """What one row takes, at 384 numbers and the ids of the sample catalogue."""

    item_bytes: float
    stored_bytes: float
    """In S3, without the index file."""
    mapped_bytes: float
    """The part of it that an API task maps, without the index file."""
    worked_bytes: float
    """On a worker's disk, before the version's files."""


def measure() -> Measured:
    """Measures the sample catalogue's rows and one build of them."""
    catalogue = read(SAMPLE)
    model = Model("minilm-l6-v2", DIMENSION, "cosine", 8, AT)
    items = [live_row(model, name, row.tobytes(), AT) for name, row in catalogue.items()]
    item_bytes = sum(map(item_size, items)) / len(items)
    with tempfile.TemporaryDirectory() as name:
        rows_dir, out_dir = Path(name, "rows"), Path(name, "out")
        writer = RowWriter(rows_dir, DIMENSION)
        writer.append(
            [
                Embedding(
                    product_id=product_id,
                    model_version=model.model_version,
                    updated_at=AT,
                    vector=row.tobytes(),
                    dimension=DIMENSION,
                )
                for product_id, row in catalogue.items()
            ]
        )
        writer.close()
        worked = sum(path.stat().st_size for path in rows_dir.iterdir())
        manifest = build_here(
            BuildSpec(
                str(rows_dir),
                str(out_dir),
                model.model_version,
                DIMENSION,
                "cosine",
                family="hnsw_sq8",
            )
        )
    rows = manifest.counts.rows
    return Measured(
        item_bytes,
        _size(manifest, manifest.files) / rows,
        _size(manifest, mapped_files(manifest)) / rows,
        worked / rows,
    )


def _size(manifest: Manifest, names: Any) -> int:
    return sum(manifest.files[name].bytes for name in names if name != files.INDEX)


def item_size(item: RequestItem) -> int:
    """The size of an item as DynamoDB counts it: names and values in UTF-8, numbers by digits."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value: Any) -> int:
    ((kind, content),) = value.items()
    if kind == "N":
        return math.ceil(len(content.strip("-").replace(".", "")) / 2) + 1
    return len(content.encode()) if kind == "S" else len(content)


class Size(msgspec.Struct, frozen=True):
    """A size of the tasks, from service.yaml."""

    name: str
    vcpu: float
    memory_gb: float
    disk_gb: int
    index_bytes: int
    loaded_bytes: int

    @property
    def monthly(self) -> float:
        """US dollars a month of one task."""
        hourly = (
            self.vcpu * prices.FARGATE_VCPU_HOUR
            + self.memory_gb * prices.FARGATE_GB_HOUR
            + (self.disk_gb - _DISK_INCLUDED_GB) * prices.FARGATE_DISK_GB_HOUR
        )
        return hourly * prices.HOURS_A_MONTH


def sizes() -> list[Size]:
    """The sizes of the template, smallest first."""
    return [
        Size(
            name,
            int(each["Cpu"]) / 1024,
            int(each["Memory"]) / 1024,
            each["Disk"],
            int(each["Index"]),
            int(each["Loaded"]),
        )
        for name, each in read_template("service")["Mappings"]["Sizes"].items()
    ]


def index_of(rows: int, bytes_max: int) -> tuple[Family, int] | None:
    """The family that a build chooses under a limit of memory, and its bytes; None if none fits."""
    if rows * DIMENSION <= IndexLimits().exact_numbers_max:
        return "exact", 0
    families: tuple[Family, ...] = ("hnsw_sq8", "ivf_pq")
    for family in families:
        planned = plan_index(family, rows, DIMENSION, "cosine", 1.0).bytes
        if planned <= bytes_max:
            return family, planned
    return None


class Machine(msgspec.Struct, frozen=True):
    """The tasks that serve and build one model version."""

    api: Size
    worker: Size
    family: Family
    index_bytes: int


def machine_for(rows: int, measured: Measured) -> Machine | None:
    """The smallest tasks that hold the index, and two versions of it on disk; None: none does."""
    for worker in sizes():
        chosen = index_of(rows, worker.index_bytes)
        needed = rows * (measured.worked_bytes + measured.stored_bytes)
        if chosen is None or needed + chosen[1] > worker.disk_gb * prices.GB:
            continue
        family, index_bytes = chosen
        mapped = rows * measured.mapped_bytes + index_bytes
        for api in sizes():
            if mapped <= api.loaded_bytes and 2 * mapped <= api.disk_gb * prices.GB:
                return Machine(api, worker, family, index_bytes)
    return None


def last_rows(measured: Measured) -> int:
    """The most rows that one task can hold, to 1 %."""
    low, high = 1.0, 1e10
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        if machine_for(int(middle), measured) is None:
            high = middle
        else:
            low = middle
    return int(low)


def costs(rows: int, measured: Measured) -> dict[str, tuple[float | None, str]]:
    """US dollars a month by item, each with how it comes about."""
    item = measured.item_bytes
    stored_gb = 2 * rows * (item + _ITEM_OVERHEAD_BYTES) / prices.GB
    table_gb = rows * (item + _ITEM_OVERHEAD_BYTES) / prices.GB
    units = math.ceil(item / _WRITE_UNIT_BYTES)
    # An index by time of change moves its entry: it deletes one and puts another.
    changed_units = rows * _CHANGED_A_DAY * units * 3 * prices.DAYS_A_MONTH
    pulled_units = rows * item / _EVENTUAL_READ_UNIT_BYTES * _BUILDS_A_DAY * prices.DAYS_A_MONTH
    machine = machine_for(rows, measured)
    version_gb = rows * measured.stored_bytes / prices.GB
    version_gb += (machine.index_bytes if machine else 0) / prices.GB
    found: dict[str, tuple[float | None, str]] = {
        "DynamoDB, storage": (
            stored_gb * prices.DYNAMODB_GB_MONTH,
            f"{stored_gb:,.2f} GB, table and index",
        ),
        "DynamoDB, point-in-time recovery": (
            table_gb * prices.DYNAMODB_RECOVERY_GB_MONTH,
            f"{table_gb:,.2f} GB",
        ),
        "DynamoDB, writes": (
            changed_units * prices.DYNAMODB_WRITE_UNIT,
            f"{changed_units / 1e6:,.1f} million units",
        ),
        "DynamoDB, reads of builds": (
            pulled_units * prices.DYNAMODB_READ_UNIT,
            f"{pulled_units / 1e6:,.1f} million units",
        ),
        "S3, index versions": (
            _VERSIONS_KEPT * version_gb * prices.S3_GB_MONTH,
            f"{_VERSIONS_KEPT} versions of {version_gb:,.2f} GB",
        ),
    }
    if machine is None:
        found["Fargate, API"] = found["Fargate, worker"] = (None, "no task holds the index")
    else:
        found["Fargate, API"] = (
            _API_TASKS * machine.api.monthly,
            f"{_API_TASKS} {machine.api.name} tasks, {machine.family}",
        )
        found["Fargate, worker"] = (machine.worker.monthly, f"1 {machine.worker.name} task")
    node = "cache.t4g.micro"
    found["Valkey"] = (prices.VALKEY_NODE_HOUR[node] * prices.HOURS_A_MONTH, f"1 {node}")
    balancer = (prices.LOAD_BALANCER_HOUR + prices.LOAD_BALANCER_UNIT_HOUR) * prices.HOURS_A_MONTH
    found["Load balancer"] = (balancer, "1 unit of load")
    return found


def page() -> str:
    """The page, in Markdown."""
    measured = measure()
    columns = [costs(rows, measured) for rows in ROWS]
    heads = " | ".join(f"{rows:,}" for rows in ROWS)
    intro = f"""Made by `python -m tests.benchmarks.costs --write`, from measured sizes and the
        prices in [`deploy/aws/prices.py`](../aws/prices.py): US dollars a month in {prices.REGION},
        as AWS published them in {prices.AS_OF}, on demand, without free tiers and taxes."""
    case = f"""One model version of {DIMENSION} numbers a row, with the templates' parameters; a
        day changes {_CHANGED_A_DAY:.0%} of the rows and makes {_BUILDS_A_DAY} build. Searches read
        no table. Where no task holds the index, nothing is built, and the lines of builds say what
        they would come to."""
    lines = ["# What it costs", "", _filled(intro), "", _filled(case), ""]
    lines += [f"| embeddings | {heads} |", "|---|" + "---:|" * len(ROWS)]
    for name in columns[0]:
        cells = [
            f"{'-' if column[name][0] is None else f'{column[name][0]:,.2f}'}<br>{column[name][1]}"
            for column in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    totals = [sum(cost or 0 for cost, _ in column.values()) for column in columns]
    lines.append(f"| **together** | {' | '.join(f'**{total:,.0f}**' for total in totals)} |")
    first = [
        rows * 2 * math.ceil(measured.item_bytes / _WRITE_UNIT_BYTES) * prices.DYNAMODB_WRITE_UNIT
        for rows in ROWS
    ]
    lines.append(f"| first import, once | {' | '.join(f'{cost:,.2f}' for cost in first)} |")
    lines += [
        "",
        _filled(_NOT_IN_IT),
        "",
        "## Measured",
        "",
        "| a row takes | bytes |",
        "|---|---:|",
        f"| an item of the table, and again of its index | {measured.item_bytes:,.0f} |",
        f"| files of a version in S3, without the index | {measured.stored_bytes:,.0f} |",
        f"| of these, what an API task maps | {measured.mapped_bytes:,.0f} |",
        f"| on a worker's disk, before these files | {measured.worked_bytes:,.0f} |",
        "",
        _filled(_HOW_MEASURED.format(units=math.ceil(measured.item_bytes / _WRITE_UNIT_BYTES))),
        "",
        "## Where one machine's index ends",
        "",
        _filled(_end(measured)),
        "",
    ]
    return "\n".join(lines)


def _end(measured: Measured) -> str:
    largest = sizes()[-1]
    return f"""At {last_rows(measured) / 1e6:,.0f} million rows of {DIMENSION} numbers. The largest
        task of service.yaml ({largest.vcpu:.0f} vCPU, {largest.memory_gb:.0f} GB) has a disk of
        {largest.disk_gb} GB, Fargate's most. It has to hold a version in use and the next one, or
        the pulled rows and the version that a build makes of them. Above that, tables and writes go
        on, and builds end with an error: K9 does not spread a model version over several machines.
        Fewer numbers a row move the end (128: about three times as many rows), so does a model
        version for a part of the catalogue, or a machine with a larger disk than Fargate's."""


def _filled(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False
    )


def main() -> None:
    """Prints the page, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"writes {PAGE.name} in place")
    text = page()
    if parser.parse_args().write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
