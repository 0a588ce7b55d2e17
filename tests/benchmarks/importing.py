"""`k9 import` against what the emulator takes at most: rows a second.

    python -m tests.benchmarks.importing [--rows 50000] [--rounds 5]

The limit is the emulator's own: a client that does nothing but send has the same BatchWriteItem
requests ready as bytes, made and signed ahead, and sends them over as many connections as an import
uses at most. `k9 import` reads the same rows from a Parquet file; its time is the one that it
prints, without the start of the process. The two take turns, and write the same rows again each
time. With two cores the emulator has one of them, and K9 the other.

Exits with 1 when K9 stores less than 0.8 of the limit.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvloop
from botocore.credentials import ReadOnlyCredentials

from core.dynamo.signing import Signer
from core.dynamo.wire import encode
from core.embedding_files.importing import BATCHES_IN_FLIGHT
from core.models import Model, now, timestamp
from core.repositories.embedding_rows import live_row
from core.settings import Settings
from core.vectors.arrays import Floats
from tests.benchmarks.figures import Report, at_least, ratios
from tests.e2e.commands import run_k9
from tests.emulators import CREDENTIALS, create_tables, running, settings_for

TO_REACH: Final = 0.8
_DIMENSION: Final = 384
_MODEL: Final = Model("imported", _DIMENSION, "cosine", 8, timestamp(now()))
_BATCH_ROWS: Final = 25
_STORED: Final = re.compile(r"([\d,]+) embeddings of \S+ stored in ([\d.]+) s")


def requests(settings: Settings, ids: list[str], vectors: Floats) -> list[bytes]:
    """Each BatchWriteItem as K9 sends it, head and body."""
    url, table = settings.aws.endpoint_url or "", settings.table("embeddings")
    signer = Signer(f"{url}/", settings.aws.region)
    credentials = ReadOnlyCredentials(*CREDENTIALS.values(), None)
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    made = []
    for start in range(0, len(ids), _BATCH_ROWS):
        part = slice(start, start + _BATCH_ROWS)
        rows = zip(ids[part], vectors[part], strict=True)
        items = [
            live_row(_MODEL, name, vector.tobytes(), _MODEL.created_at) for name, vector in rows
        ]
        puts = [{"PutRequest": {"Item": item}} for item in items]
        body = encode({"RequestItems": {table: puts}, "ReturnConsumedCapacity": "TOTAL"})
        headers = signer.headers(credentials, "DynamoDB_20120810.BatchWriteItem", body, at)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST / HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made


async def send(url: str, made: list[bytes], connections: int) -> None:
    """Sends all of them, each connection one after the other."""
    at = urlsplit(url)
    waiting = iter(made)

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        for request in waiting:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(
                int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            )
            if b" 200 " not in head.split(b"\r\n")[0] or b'"UnprocessedItems": {}' not in body:
                raise SystemExit(f"the emulator did not take a request: {head!r} {body[:500]!r}")
        writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))


async def measure(settings: Settings, directory: Path, rows: int, rounds: int) -> int:
    """All rounds, and the report; the exit status."""
    ids = [f"product-{number:08d}" for number in range(rows)]
    vectors = np.random.default_rng(1).standard_normal((rows, _DIMENSION)).astype("<f4")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), _DIMENSION)
    pq.write_table(pa.table({"product_id": ids, "vector": column}), directory / "rows.parquet")
    made = requests(settings, ids, vectors)
    connections = BATCHES_IN_FLIGHT * settings.ingest.batch_concurrency
    pairs: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        status, out, error = await run_k9(
            settings, directory, "import", "rows.parquet", "--model", _MODEL.model_version
        )
        stored = _STORED.search(out)
        if status or stored is None or int(stored[1].replace(",", "")) != rows:
            raise SystemExit(f"the import failed: {out}{error}")
        began = time.perf_counter()
        await send(settings.aws.endpoint_url or "", made, connections)
        pairs.append((rows / float(stored[2]), rows / (time.perf_counter() - began)))
    pairs.pop(0)  # which found the table empty
    k9, limit = zip(*pairs, strict=True)
    report = Report()
    report.add(f"k9 import of {rows:,} rows", k9, "rows/s")
    report.add("the emulator's limit", limit, "rows/s")
    report.add("k9 import to the emulator's limit", ratios(k9, limit), target=at_least(TO_REACH))
    return report.end()


async def run(rows: int, rounds: int) -> int:
    """An emulator with the tables, and the comparison on it."""
    with running("ministack") as url, tempfile.TemporaryDirectory() as directory:
        settings = await create_tables(settings_for(url))
        return await measure(settings, Path(directory), rows, rounds)


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    os.environ.update(CREDENTIALS, AWS_EC2_METADATA_DISABLED="true", AWS_DEFAULT_REGION="us-east-1")
    sys.exit(uvloop.run(run(asked.rows, asked.rounds)))


if __name__ == "__main__":
    main()
