"""Pulling a model version over canned pages: rows a second, and peak memory as rows grow.

    python -m tests.benchmarks.pull [--rows 20000 100000] [--rounds 5]

A server process answers Query with pages of 1 MB, made ahead, with DynamoDB's headers and checksum,
so that what is measured is the reader alone: K9's (wire parser, rows streamed to disk) against
`aioboto3.Session().client("dynamodb")` as it comes (items in the form of botocore, vectors to a
file). Each run is a process of its own, on uvloop as the worker has; the two take turns. A figure
is the processor time to the last row, from a client that has made a call, as a worker's has.

Exits with 1 when K9 pulls less than 6 times the stock client's rows a second.
"""

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import aioboto3
import msgspec
import numpy as np
import uvloop

from core.dynamo import tables
from core.dynamo.client import open_dynamo
from core.index.rows import RowWriter
from core.models import Model
from core.repositories.embeddings import EmbeddingRepository
from core.settings import Aws, Settings
from tests.benchmarks.canned import Respond, serve, serving
from tests.benchmarks.figures import Report, at_least, ratios
from tests.emulators import CREDENTIALS
from worker.building.build_process import peak_bytes

TO_REACH = 6.0
DIMENSION, SHARDS, PAGE_ROWS = 384, 8, 440
Figures = dict[str, float]
_SELF = (sys.executable, "-m", "tests.benchmarks.pull")
MODEL = Model("canned", DIMENSION, "cosine", SHARDS, "2026-01-01T00:00:00.000000Z")


def page(shard: int, number: int, rows: int, vectors: list[str]) -> bytes:
    """One reply to Query, its ids unique over all pages."""
    moment = {"S": "2026-01-01T00:00:00.000000Z"}
    items = [
        {
            "product_id": {"S": f"product-{shard}-{number:06d}-{row:03d}"},
            "model_version": {"S": MODEL.model_version},
            tables.MODEL_SHARD: {"S": tables.model_shard(MODEL.model_version, shard)},
            "embedding_vector": {"B": vectors[row]},
            "vector_dimension": {"N": str(DIMENSION)},
            "created_at": moment,
            "updated_at": moment,
        }
        for row in range(rows)
    ]
    reply: dict[str, Any] = {"Items": items, "Count": rows, "ScannedCount": rows}
    names = ("product_id", "model_version", tables.MODEL_SHARD, "updated_at")
    reply["LastEvaluatedKey"] = {name: items[-1][name] for name in names}
    return json.dumps(reply).encode()


def respond_with(rows: int) -> Respond:
    """Answers Query by shard and start key until `rows` rows were given out."""
    generator = np.random.default_rng(1)
    vectors = [
        base64.b64encode(generator.standard_normal(DIMENSION).astype("<f4").tobytes()).decode()
        for _ in range(PAGE_ROWS)
    ]
    pages = -(-rows // (SHARDS * PAGE_ROWS))
    model = page(0, 0, PAGE_ROWS, vectors)

    def respond(_operation: str, request: bytes) -> bytes:
        asked = msgspec.json.decode(request)
        last = asked.get("ExclusiveStartKey", {}).get("product_id", {}).get("S", "product-0--1-0")
        shard = int(asked["ExpressionAttributeValues"][":v0"]["S"].rsplit("#", 1)[1])
        number = int(last.split("-")[2]) + 1 if "--" not in last else 0
        body = model.replace(b"product-0-000000-", f"product-{shard}-{number:06d}-".encode())
        if number == pages - 1:
            body = body[: body.rindex(b', "LastEvaluatedKey"')] + b"}"
        return body

    return respond


def query(shard: int) -> dict[str, Any]:
    """The parameters of a Query for the rows of a shard."""
    return {
        "TableName": "t",
        "IndexName": tables.MODEL_VERSION_INDEX,
        "KeyConditionExpression": "#n0 = :v0",
        "ExpressionAttributeNames": {"#n0": tables.MODEL_SHARD},
        "ExpressionAttributeValues": {":v0": {"S": tables.model_shard(MODEL.model_version, shard)}},
    }


async def pull(settings: Settings, directory: Path) -> Figures:
    """K9's reader and writer."""
    async with open_dynamo(settings) as dynamo:
        repository = EmbeddingRepository(dynamo, settings)
        await dynamo.call("query", **query(0))
        watch = Watch()
        pulled = 0
        with closing(RowWriter(directory, DIMENSION)) as writer:
            async for rows in repository.get_embeddings_by_model(MODEL):
                writer.append(rows)
                pulled += len(rows)
        return watch.figures(pulled)


async def pull_stock(settings: Settings, directory: Path) -> Figures:
    """The stock client, its vectors appended to one file."""
    seen = 0
    stock = aioboto3.Session().client(
        "dynamodb", region_name=settings.aws.region, endpoint_url=settings.aws.endpoint_url
    )
    with (directory / "vectors").open("wb") as file:
        async with stock as client:
            await client.query(**query(0))
            watch = Watch()

            async def read(shard: int) -> None:
                nonlocal seen
                start: dict[str, Any] = {}
                while True:
                    reply = await client.query(**query(shard), **start)
                    for item in reply["Items"]:
                        file.write(item["embedding_vector"]["B"])
                    seen += len(reply["Items"])
                    if "LastEvaluatedKey" not in reply:
                        return
                    start = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}

            await asyncio.gather(*(read(shard) for shard in range(SHARDS)))
            return watch.figures(seen)


class Watch:
    """Both clocks, from now on."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def figures(self, rows: int) -> Figures:
        """What the rows took."""
        wall_s, processor_s = (
            time.perf_counter() - self._wall,
            time.process_time() - self._processor,
        )
        spent = {"wall_s": wall_s, "processor_s": processor_s}
        return {"rows": rows, "peak_bytes": peak_bytes(), **spent}


def child(way: str, url: str) -> None:
    """One measured run; prints its figures as JSON."""
    settings = Settings(aws=Aws(endpoint_url=url, read_timeout_s=60, deadline_s=120))
    run = pull if way == "k9" else pull_stock
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(uvloop.run(run(settings, Path(directory)))))


def measure(way: str, url: str) -> Figures:
    """A run in a process of its own."""
    done = subprocess.run(
        [*_SELF, "--child", way, url],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | CREDENTIALS | {"AWS_EC2_METADATA_DISABLED": "true"},
    )
    figures: Figures = msgspec.json.decode(done.stdout)
    return figures


def measure_both(rows: int, rounds: int) -> dict[str, list[Figures]]:
    """All rounds of both readers."""
    runs: dict[str, list[Figures]] = {"k9": [], "stock": []}
    with serving("tests.benchmarks.pull", str(rows)) as url:
        for _ in range(rounds):
            for way, figures in runs.items():
                figures.append(measure(way, url))
    return runs


def main() -> None:
    """Runs the comparison and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    if asked.serve:
        port, rows = asked.serve
        serve(port, respond_with(rows))
        return
    report = Report()
    for rows in asked.rows:
        add(report, f"pull of {rows:,} rows", measure_both(rows, asked.rounds))
    sys.exit(report.end())


def add(report: Report, pull: str, runs: dict[str, list[Figures]]) -> None:
    """The figures of each way, and the ratio of processor time."""
    for way, figures in runs.items():
        name = f"{pull} by {way}"
        report.add(name, [f["rows"] / f["processor_s"] for f in figures], "rows/s of a core")
        report.add(f"{name}, by the clock", [f["rows"] / f["wall_s"] for f in figures], "rows/s")
        report.add(f"{name}, peak memory", [f["peak_bytes"] / 2**20 for f in figures], "MiB")
    spent = {way: [f["processor_s"] for f in figures] for way, figures in runs.items()}
    compared = ratios(spent["stock"], spent["k9"])
    report.add(f"{pull}: K9 to stock", compared, target=at_least(TO_REACH))


if __name__ == "__main__":
    main()
