"""Decoding one 1 MB page of embeddings three ways, in turns: `python -m tests.benchmarks.decode`.

1. wire: `core.dynamo.wire` on the Binary layout: items of `AttributeValue`, vectors as bytes.
2. stock client: botocore's own parser on the same bytes: items of dicts, vectors as bytes.
3. stock resource: botocore's parser and boto3's TypeDeserializer on the older layout, a list of
   numbers: plain items, vectors as lists of Decimal.

Each starts at the bytes of the reply, and ends at items that the code behind it uses as they are.
The fourth figure, wire and codec, goes on to the domain's Structs, as the repositories do. A page
is 1 MB as DynamoDB counts it, so one of lists has fewer rows: figures are rows a second.

Exits with 1 when the wire parser is below 4 times the second or 100 times the third.
"""

import asyncio
import json
import sys
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any
from zlib import crc32

import numpy as np
from aiobotocore.parsers import AioJSONParser
from aiobotocore.session import AioSession
from boto3.dynamodb.transform import TransformationInjector  # type: ignore[import-untyped]

from core.dynamo.items import Codec
from core.dynamo.tables import model_shard, shard_of
from core.dynamo.wire import WireParser
from core.models import Embedding
from tests.benchmarks.figures import Report, at_least, ratios

PAGE_BYTES = 1024 * 1024
DIMENSION = 384
ROUNDS = 15
TO_REACH = {"stock client": 4.0, "stock resource": 100.0}
REPEATS = {"wire": 20, "wire and codec": 10, "stock client": 5, "stock resource": 1}
"""Pages a round, so that each way takes about as long."""

Decode = Callable[[], Awaitable[int]]


def stored_bytes(value: dict[str, Any]) -> int:
    """An attribute's size as DynamoDB counts it, without its name."""
    ((kind, content),) = value.items()
    if kind == "N":
        return (len(content.strip("-0.")) + 1) // 2 + 1
    if kind == "L":
        return 3 + sum(1 + stored_bytes(part) for part in content)
    return len(content)


def page(as_list: bool) -> tuple[dict[str, Any], int]:  # noqa: FBT001 - the two layouts
    """A Query's reply as it comes from the wire, and how many rows are in it."""
    random = np.random.default_rng(7)
    items: list[dict[str, Any]] = []
    size = 0
    while True:
        vector = random.standard_normal(DIMENSION).astype("<f4")
        vector /= np.linalg.norm(vector)
        product_id = f"product-{len(items):08}"
        item: dict[str, Any] = {
            "product_id": {"S": product_id},
            "model_version": {"S": "minilm-l6-v2"},
            "model_shard": {"S": model_shard("minilm-l6-v2", shard_of(product_id, 8))},
            "dimension": {"N": str(DIMENSION)},
            "updated_at": {"S": "2026-01-01T00:00:00.000000Z"},
            "vector": {"L": [{"N": str(number)} for number in vector.tolist()]}
            if as_list
            else {"B": vector.tobytes()},
        }
        size += sum(len(name) + stored_bytes(value) for name, value in item.items())
        if size > PAGE_BYTES:
            break
        if not as_list:
            item["vector"] = {"B": b64encode(vector.tobytes()).decode()}
        items.append(item)
    body = json.dumps({"Items": items, "Count": len(items), "ScannedCount": len(items)}).encode()
    headers = {"x-amzn-requestid": "A" * 52, "x-amz-crc32": str(crc32(body))}
    return {"body": body, "headers": headers, "status_code": 200, "context": {}}, len(items)


async def ways() -> dict[str, tuple[Decode, int]]:
    """Each way to decode its page, with the rows of a page."""
    query = (await AioSession().get_service_model("dynamodb")).operation_model("Query")
    binary, binary_rows = page(as_list=False)
    numbers, numbers_rows = page(as_list=True)
    wire, stock, plain = WireParser(), AioJSONParser(), TransformationInjector()
    codec = Codec(Embedding)

    async def by_wire() -> int:
        return len((await wire.parse(binary, query.output_shape))["Items"])

    async def by_wire_and_codec() -> int:
        reply = await wire.parse(binary, query.output_shape)
        return len([codec.decode(item) for item in reply["Items"]])

    async def by_stock_client() -> int:
        return len((await stock.parse(binary, query.output_shape))["Items"])

    async def by_stock_resource() -> int:
        reply = await stock.parse(numbers, query.output_shape)
        plain.inject_attribute_value_output(reply, query)
        return len(reply["Items"])

    return {
        "wire": (by_wire, binary_rows),
        "wire and codec": (by_wire_and_codec, binary_rows),
        "stock client": (by_stock_client, binary_rows),
        "stock resource": (by_stock_resource, numbers_rows),
    }


async def main() -> int:
    """Measures, reports; the exit status."""
    decoders = await ways()
    for decode, rows in decoders.values():
        assert await decode() == rows
    rates: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(ROUNDS):
        for name, (decode, rows) in decoders.items():
            start = time.perf_counter()
            for _ in range(REPEATS[name]):
                await decode()
            rates[name].append(rows * REPEATS[name] / (time.perf_counter() - start))
    report = Report()
    for name, each in rates.items():
        report.add(f"decoding by {name}, {decoders[name][1]} rows a page", each, "rows/s")
    for name, to_reach in TO_REACH.items():
        compared = ratios(rates["wire"], rates[name])
        report.add(f"decoding: wire to {name}", compared, target=at_least(to_reach))
    return report.end()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
