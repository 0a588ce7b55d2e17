"""The latency of DynamoDB as K9's own client sees it, on a row of the doctor's own.

The row stands in the embeddings table under a model version that no route accepts as a name, so no
search, list or build ever reads it. It is deleted at the end; what a killed run left is deleted by
a later one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from time import perf_counter
from typing import Any, Final

from core.dynamo import tables
from core.dynamo.client import Dynamo
from core.dynamo.expressions import equals, expressions
from core.dynamo.expressions import key as row_key_of
from core.dynamo.items import attribute_of
from core.errors import K9Error
from core.models import now, timestamp
from core.settings import Settings
from deploy.doctor.report import Check, Latency, failed, ok, percentile, warning

MODEL_VERSION: Final = "#doctor"
"""No valid name: those begin with a letter or digit."""
_VECTOR_BYTES: Final = 384 * 4
"""As the rows of the sample catalogue have it."""
_STALE: Final = timedelta(hours=1)


async def measure(
    dynamo: Dynamo, settings: Settings, key: str, calls: int, *, writes: bool
) -> tuple[list[Check], list[Latency]]:
    """Puts, reads and queries a row `calls` times each, one call after another.

    Without `writes`, as for a worker, which may neither put nor get single embeddings, it queries
    alone.
    """
    table = settings.table(tables.EMBEDDINGS.name)
    row_key = row_key_of(product_id=key, model_version=MODEL_VERSION)
    row = {
        **row_key,
        tables.MODEL_SHARD: attribute_of(MODEL_VERSION),
        "updated_at": attribute_of(timestamp(now())),
        "embedding_vector": attribute_of(bytes(_VECTOR_BYTES)),
    }
    by_shard = expressions(key=equals(tables.MODEL_SHARD, MODEL_VERSION))
    index = tables.MODEL_VERSION_INDEX
    operations: dict[str, Callable[[], Awaitable[object]]] = {
        "put": lambda: dynamo.call("put_item", TableName=table, Item=row),
        "get": lambda: dynamo.call("get_item", TableName=table, Key=row_key, ConsistentRead=True),
        "query": lambda: dynamo.call("query", TableName=table, IndexName=index, **by_shard),
    }
    if not writes:
        operations = {"query": operations["query"]}
    checks: list[Check] = []
    measured: list[Latency] = []
    try:
        if writes:
            await _remove_stale(dynamo, table)
        for operation, call in operations.items():
            times_ms = await _times_ms(call, calls)
            p50, p99 = (round(percentile(times_ms, percent), 2) for percent in (50, 99))
            latency = Latency(operation, calls, p50, p99, round(times_ms[-1], 2))
            measured.append(latency)
            checks.append(_judged(latency, settings))
    except K9Error as error:
        advice = "see the checks of DynamoDB above"
        checks.append(failed("latency of DynamoDB", str(error), advice))
    finally:
        if writes:
            deleting = asyncio.ensure_future(_delete(dynamo, table, row_key))
            with suppress(K9Error):
                await asyncio.shield(deleting)
    return checks, measured


async def _times_ms(call: Callable[[], Awaitable[object]], calls: int) -> list[float]:
    """Ascending times; the first call, which opens a connection, is not among them."""
    await call()
    times_ms = []
    for _ in range(calls):
        began = perf_counter()
        await call()
        times_ms.append((perf_counter() - began) * 1000)
    return sorted(times_ms)


def _judged(latency: Latency, settings: Settings) -> Check:
    limit_ms = settings.aws.read_timeout_s * 1000 / 2
    detail = f"p50 {latency.p50_ms:.1f} ms, p99 {latency.p99_ms:.1f} ms over {latency.calls} calls"
    subject = f"latency of {latency.operation}"
    if latency.p99_ms <= limit_ms:
        return ok(subject, detail)
    return warning(
        subject,
        detail,
        f"over half of the timeout of a call ({settings.aws.read_timeout_s:g} s): run in the "
        "region of the tables, and look at DynamoDB's throttling",
    )


async def _remove_stale(dynamo: Dynamo, table: str) -> None:
    """Deletes rows that killed runs left more than an hour ago."""
    before = timestamp(now() - _STALE)
    reply = await dynamo.call(
        "query",
        TableName=table,
        IndexName=tables.MODEL_VERSION_INDEX,
        **expressions(
            key=equals(tables.MODEL_SHARD, MODEL_VERSION),
            projection=("product_id", "model_version", "updated_at"),
        ),
    )
    stale = [
        {name: item[name] for name in tables.EMBEDDINGS.key.attributes}
        for item in reply["Items"]
        if (item["updated_at"].S or "") < before
    ]
    for key in stale:
        await _delete(dynamo, table, key)


async def _delete(dynamo: Dynamo, table: str, key: Mapping[str, Any]) -> None:
    """In a batch, which the API's role may write; it has no right to delete single embeddings."""
    await dynamo.call("batch_write_item", RequestItems={table: [{"DeleteRequest": {"Key": key}}]})
