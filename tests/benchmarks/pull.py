"""Pulling a model version over canned pages: rows a second, and peak memory as rows grow.

    python -m tests.benchmarks.pull [--rows 20000 100000] [--rounds 3]

A server process answers Query with pages of 1 MB, made ahead, so that what is measured is the
reader alone: K9's (wire parser, rows streamed to disk) against the stock client (items in the form
of botocore, vectors to a file). Each run is a process of its own; the two take turns.
"""

import argparse
import asyncio
import base64
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from core.aws import client_config, new_session, open_client
from core.dynamo import tables
from core.dynamo.client import open_dynamo
from core.index.rows import RowWriter
from core.models import Model
from core.repositories.embeddings import EmbeddingRepository
from core.settings import Aws, Settings
from tests.emulators import CREDENTIALS, free_port

DIMENSION, SHARDS, PAGE_ROWS = 384, 8, 440
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


def serve(port: int, rows: int) -> None:
    """Answers Query by shard and start key until `rows` rows were given out."""
    generator = np.random.default_rng(1)
    vectors = [
        base64.b64encode(generator.standard_normal(DIMENSION).astype("<f4").tobytes()).decode()
        for _ in range(PAGE_ROWS)
    ]
    pages = -(-rows // (SHARDS * PAGE_ROWS))
    bodies = [page(0, 0, PAGE_ROWS, vectors)]

    async def answer(request: web.Request) -> web.Response:
        asked = await request.json()
        last = asked.get("ExclusiveStartKey", {}).get("product_id", {}).get("S", "product-0--1-0")
        shard = int(asked["ExpressionAttributeValues"][":v0"]["S"].rsplit("#", 1)[1])
        number = int(last.split("-")[2]) + 1 if "--" not in last else 0
        body = bodies[0].replace(b"product-0-000000-", f"product-{shard}-{number:06d}-".encode())
        if number == pages - 1:
            body = body[: body.rindex(b', "LastEvaluatedKey"')] + b"}"
        return web.Response(body=body, content_type="application/x-amz-json-1.0")

    app = web.Application(client_max_size=2**20)
    app.router.add_post("/", answer)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


async def pull(settings: Settings, directory: Path) -> int:
    """K9's reader and writer; the rows."""
    async with open_dynamo(settings) as dynamo:
        repository = EmbeddingRepository(dynamo, settings)
        pulled = 0
        with closing(RowWriter(directory, DIMENSION)) as writer:
            async for rows in repository.get_embeddings_by_model(MODEL):
                writer.append(rows)
                pulled += len(rows)
        return pulled


async def pull_stock(settings: Settings, directory: Path) -> int:
    """The stock client, its vectors appended to one file; the rows."""
    session = new_session()
    seen = 0
    with (directory / "vectors").open("wb") as file:
        async with open_client(
            session, "dynamodb", client_config(settings), settings.aws.endpoint_url
        ) as client:

            async def read(shard: int) -> None:
                nonlocal seen
                start: dict[str, Any] = {}
                while True:
                    reply = await client.query(
                        TableName="t",
                        IndexName=tables.MODEL_VERSION_INDEX,
                        KeyConditionExpression="#n0 = :v0",
                        ExpressionAttributeNames={"#n0": tables.MODEL_SHARD},
                        ExpressionAttributeValues={
                            ":v0": {"S": tables.model_shard(MODEL.model_version, shard)}
                        },
                        **start,
                    )
                    for item in reply["Items"]:
                        file.write(item["embedding_vector"]["B"])
                    seen += len(reply["Items"])
                    if "LastEvaluatedKey" not in reply:
                        return
                    start = {"ExclusiveStartKey": reply["LastEvaluatedKey"]}

            await asyncio.gather(*(read(shard) for shard in range(SHARDS)))
    return seen


def child(way: str, url: str) -> None:
    """One measured run; prints its figures as JSON."""
    aws = Aws(endpoint_url=url, read_timeout_s=60, deadline_s=120)
    settings = Settings(aws=aws)
    run = pull if way == "k9" else pull_stock
    with tempfile.TemporaryDirectory() as directory:
        started, cpu = time.perf_counter(), time.process_time()
        rows = asyncio.run(run(settings, Path(directory)))
        wall_s, processor_s = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"rows": rows, "wall_s": wall_s, "processor_s": processor_s, "peak_bytes": peak}
    print(json.dumps(figures))


def measure(way: str, url: str) -> dict[str, float]:
    """A run in a process of its own."""
    done = subprocess.run(
        [*_SELF, "--child", way, url],
        check=True,
        stdout=subprocess.PIPE,
        env=os.environ | CREDENTIALS | {"AWS_EC2_METADATA_DISABLED": "true"},
    )
    figures: dict[str, float] = msgspec.json.decode(done.stdout)
    return figures


def main() -> None:
    """Runs the comparison and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child)
        return
    if asked.serve:
        serve(*asked.serve)
        return
    for rows in asked.rows:
        port = free_port()
        server = subprocess.Popen([*_SELF, "--serve", str(port), str(rows)])
        try:
            _wait_for(port)
            runs: dict[str, list[dict[str, float]]] = {"k9": [], "stock": []}
            for _ in range(asked.rounds):
                for way, figures in runs.items():
                    figures.append(measure(way, f"http://127.0.0.1:{port}"))
        finally:
            server.terminate()
            server.wait()
        report(rows, runs)


def _wait_for(port: int) -> None:
    """Returns once something listens on the port."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit("the server of canned pages did not start")


def report(rows: int, runs: dict[str, list[dict[str, float]]]) -> None:
    """Medians of each way, and the ratio of processor time with its spread."""
    print(f"{rows:,} rows asked for, {len(runs['k9'])} rounds in turns")
    for way, figures in runs.items():
        rate = statistics.median(f["rows"] / f["processor_s"] for f in figures)
        wall = statistics.median(f["rows"] / f["wall_s"] for f in figures)
        peak = max(f["peak_bytes"] for f in figures) / 2**20
        print(
            f"  {way:6} {int(figures[0]['rows']):>8,} rows  {rate:>9,.0f} rows/s of processor time"
            f"  {wall:>9,.0f} rows/s  peak {peak:,.0f} MiB"
        )
    pairs = zip(runs["k9"], runs["stock"], strict=True)
    ratios = sorted(s["processor_s"] / k["processor_s"] for k, s in pairs)
    print(f"  ratio  {statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})")


if __name__ == "__main__":
    main()
