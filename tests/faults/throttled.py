"""An import and a build through a DynamoDB that throttles: every row is stored, and indexed.

    python -m tests.faults.throttled [--rows 20000] [--throttle 0.33] [--unprocessed 0.33]
        [--seed 1]

Starts an emulator and a proxy before it that turns calls away and takes batches in part, imports a
file of made-up rows by `k9 import`, and reads every row without the proxy, from the table and from
its index, against the file's bytes. Then a worker builds the index through the proxy. Prints what
was injected and what was seen; exits 1 when a row is missing or wrong.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.models import Build, BuildParameters, Embedding
from core.resources import Resources, open_resources
from core.settings import Settings
from tests.e2e.commands import NO_REDIS, run_k9
from tests.emulators import CREDENTIALS, create_tables, running, settings_for
from tests.faults.proxy import Faults, Proxy, proxied
from tests.worker.processes import running as worker_running
from tests.worker.processes import until

MODEL = "throttled"
DIMENSION = 384
BUILD_S = 600.0


class Site(msgspec.Struct, frozen=True):
    """An emulator's tables, the straight way and through the proxy."""

    straight: Settings
    through: Settings
    proxy: Proxy
    directory: Path


@asynccontextmanager
async def site(straight: Settings, directory: Path, seed: int) -> AsyncIterator[Site]:
    """A proxy before the emulator of these settings; it lets all through until it is told."""
    port = urlsplit(straight.aws.endpoint_url or "").port or 0
    async with proxied(port, seed=seed, dynamodb=True) as proxy:
        defaults = Settings().aws
        aws = msgspec.structs.replace(
            straight.aws,
            endpoint_url=f"http://127.0.0.1:{proxy.port}",
            read_timeout_s=defaults.read_timeout_s,
            deadline_s=defaults.deadline_s,
        )
        through = msgspec.structs.replace(
            straight,
            aws=aws,
            redis_url=NO_REDIS,
            building=msgspec.structs.replace(straight.building, work_dir=directory / "work"),
        )
        yield Site(straight, through, proxy, directory)


def write_rows(path: Path, rows: int, seed: int) -> dict[str, bytes]:
    """Writes made-up rows as a Parquet file; each id's vector as float32 little-endian."""
    vectors = np.random.default_rng(seed).normal(size=(rows, DIMENSION)).astype("<f4")
    ids = [f"p/{number} é" for number in range(rows)]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIMENSION)
    pq.write_table(pa.table({"product_id": ids, "vector": column}), path)
    return {product_id: vector.tobytes() for product_id, vector in zip(ids, vectors, strict=True)}


def differences(where: str, wanted: dict[str, bytes], found: list[Embedding]) -> list[str]:
    """What is missing, wrong or too much among rows that were read."""
    there = {row.product_id: row.vector for row in found}
    wrong = [
        f"{where}: {product_id!r} is {'wrong' if product_id in there else 'missing'}"
        for product_id, vector in wanted.items()
        if there.get(product_id) != vector
    ]
    wrong += [f"{where}: {one!r} was never sent" for one in there.keys() - wanted.keys()]
    if len(found) != len(there):
        wrong.append(f"{where}: {len(found) - len(there)} rows came twice")
    return wrong


async def compare(resources: Resources, wanted: dict[str, bytes]) -> list[str]:
    """Holds every row against what was sent: in the table, consistently, and in all shards."""
    table = await resources.embeddings.read_rows(MODEL, list(wanted))
    model = await resources.models.get_model(MODEL)
    pages = resources.embeddings.get_embeddings_by_model(model)
    index = [row async for page in pages for row in page]
    return differences("table", wanted, table) + differences("index", wanted, index)


async def import_rows(at: Site, rows: int, faults: Faults, seed: int) -> list[str]:
    """Imports a file by the command, under these faults; what is wrong afterwards."""
    path = at.directory / "rows.parquet"
    wanted = write_rows(path, rows, seed)
    at.proxy.set(faults)
    began = time.monotonic()
    status, out, error = await run_k9(
        at.through, at.directory, "import", str(path), "--model", MODEL
    )
    took_s = time.monotonic() - began
    at.proxy.set(Faults())
    async with open_resources(at.straight) as resources:
        wrong = [f"k9 import ended with {status}: {out}{error}"] if status else []
        wrong += await compare(resources, wanted)
    print(f"import:   {rows:,} rows in {took_s:.1f} s, {rows / took_s:,.0f} rows/s: {out.strip()}")
    _print_injected(at.proxy)
    return wrong


async def build_index(at: Site, rows: int, faults: Faults) -> list[str]:
    """Has a worker build what was imported, under these faults; what is wrong afterwards."""
    async with open_resources(at.straight) as resources:
        build = await resources.build_service.request(MODEL, BuildParameters(matrix_k=5))
        at.proxy.set(faults)
        began = time.monotonic()
        more = {
            "AWS_ENDPOINT_URL": at.straight.aws.endpoint_url or "",
            "AWS_ENDPOINT_URL_DYNAMODB": at.through.aws.endpoint_url or "",
            "K9_LEASE_S": f"{at.through.building.lease_s:g}",
        }
        async with worker_running(at.through, **more):
            build = await until(resources, build.build_id, _ended, BUILD_S)
        took_s = time.monotonic() - began
        at.proxy.set(Faults())
    stages = (build.manifest or {}).get("stages")
    print(
        f"build:    {build.status} in {took_s:.1f} s, try {build.fence}, seconds a stage: {stages}"
    )
    _print_injected(at.proxy)
    return _problems(build, rows)


def _ended(build: Build) -> bool:
    return build.status in {"published", "failed", "cancelled"}


def _problems(build: Build, rows: int) -> list[str]:
    indexed = (build.manifest or {}).get("counts", {}).get("rows")
    if build.status != "published":
        return [f"the build is {build.status}: {build.error}"]
    return [] if indexed == rows else [f"the build has {indexed} rows of {rows}"]


def _print_injected(proxy: Proxy) -> None:
    print(f"          calls {dict(proxy.calls)}, injected {dict(proxy.injected)}")
    proxy.calls.clear()
    proxy.injected.clear()


async def run(rows: int, faults: Faults, seed: int) -> list[str]:
    """All of it on an emulator of its own; what is wrong."""
    with (
        running("ministack") as url,
        tempfile.TemporaryDirectory(prefix="k9-throttled-") as directory,
    ):
        straight = await create_tables(settings_for(url))
        async with site(straight, Path(directory), seed) as at:
            wrong = await import_rows(at, rows, faults, seed)
            return wrong + await build_index(at, rows, faults)


def main() -> int:
    """Reads the arguments, and runs; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--throttle", type=float, default=0.33, help="share of all calls")
    parser.add_argument("--unprocessed", type=float, default=0.33, help="share of batch writes")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ |= CREDENTIALS
    faults = Faults(throttle_rate=asked.throttle, unprocessed_rate=asked.unprocessed)
    wrong = asyncio.run(run(asked.rows, faults, asked.seed))
    for line in wrong[:20]:
        print(f"WRONG:    {line}")
    print(f"seed {asked.seed}: {f'{len(wrong)} wrong' if wrong else 'every row is there'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
