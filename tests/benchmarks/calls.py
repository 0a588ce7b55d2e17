"""Processor time of one `get_item` and one `put_item`: K9's client against the stock one.

    python -m tests.benchmarks.calls [--calls 2000] [--rounds 7]

A server process gives canned replies with DynamoDB's headers and checksum, so that what is measured
is the client alone. One process has both clients, on uvloop as the API has, and they take turns; a
figure is the processor time of the process over the calls of a round, by eight callers at a time.
The row is an embedding of 384 numbers.

Stock is `aioboto3.Session().client("dynamodb")` as it comes. K9 is `Dynamo.call` as in production,
with its signature, checksum, deadline, retries, and metrics of call, attempt and units.

Exits with 1 when K9 takes more than 0.6 of the stock client's time.
"""

import argparse
import asyncio
import gc
import os
import sys
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aioboto3
import msgspec
import numpy as np
import uvloop

from core.dynamo.client import open_dynamo
from core.models import Model
from core.repositories.embedding_rows import live_row, row_key
from core.settings import Aws, Settings
from tests.benchmarks.canned import serve, serving
from tests.benchmarks.figures import Report, at_most, ratios
from tests.emulators import CREDENTIALS

TO_REACH: Final = 0.6
_CALLERS: Final = 8
_TABLE: Final = Settings().table("embeddings")
_AT: Final = "2026-01-01T00:00:00.000000Z"
_MODEL: Final = Model("canned", 384, "cosine", 8, _AT)
_VECTOR: Final = np.random.default_rng(1).standard_normal(384).astype("<f4").tobytes()
_ROW: Final = live_row(_MODEL, "product-000001", _VECTOR, _AT)
_KEY: Final = row_key(_MODEL.model_version, "product-000001")

Act = Callable[[], Awaitable[Any]]


def replies() -> dict[str, bytes]:
    """The body of each operation's reply."""
    charged = {"TableName": _TABLE, "CapacityUnits": 1.0}
    on_wire = _ROW | {"embedding_vector": {"B": b64encode(_VECTOR).decode()}}
    return {
        "GetItem": msgspec.json.encode({"ConsumedCapacity": charged, "Item": on_wire}),
        "PutItem": msgspec.json.encode({"ConsumedCapacity": charged}),
    }


async def seconds(act: Act, calls: int) -> float:
    """Processor time a call."""

    async def caller() -> None:
        for _ in range(calls // _CALLERS):
            await act()

    gc.collect()
    started = time.process_time()
    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return (time.process_time() - started) / (calls // _CALLERS * _CALLERS)


async def measure(url: str, calls: int, rounds: int, report: Report) -> None:
    """All rounds, and the report."""
    settings = Settings(aws=Aws(endpoint_url=url))
    stock = aioboto3.Session().client("dynamodb", endpoint_url=url, region_name=settings.aws.region)
    async with open_dynamo(settings) as dynamo, stock as client:
        get: dict[str, Any] = {"TableName": _TABLE, "Key": _KEY, "ConsistentRead": True}
        put: dict[str, Any] = {"TableName": _TABLE, "Item": _ROW}
        figures: dict[str, tuple[Act, Act]] = {
            "get_item": (lambda: dynamo.call("get_item", **get), lambda: client.get_item(**get)),
            "put_item": (lambda: dynamo.call("put_item", **put), lambda: client.put_item(**put)),
        }
        for name, (ours, theirs) in figures.items():
            for act in (ours, theirs):
                await seconds(act, calls // 4)
            pairs = [
                (await seconds(ours, calls), await seconds(theirs, calls)) for _ in range(rounds)
            ]
            k9, theirs_s = zip(*pairs, strict=True)
            for side, values in (("K9", k9), ("the stock client", theirs_s)):
                report.add(f"{name} by {side}", [1e6 * value for value in values], "µs")
            report.add(f"{name}: K9 to stock", ratios(k9, theirs_s), target=at_most(TO_REACH))


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        bodies = replies()
        serve(asked.serve, lambda operation, _: bodies[operation])
        return
    os.environ.update(CREDENTIALS, AWS_EC2_METADATA_DISABLED="true")
    with serving("tests.benchmarks.calls") as url:
        report = Report()
        uvloop.run(measure(url, asked.calls, asked.rounds, report))
    sys.exit(report.end())


if __name__ == "__main__":
    main()
