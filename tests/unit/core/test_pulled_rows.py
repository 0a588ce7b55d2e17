"""Rows as a read of many decodes them, held against the way of single rows on the same bytes."""

import json
from base64 import b64encode
from typing import Any

import numpy as np
import pytest

from core.dynamo.wire import WireParser
from core.errors import NewerFormat
from core.models import Embedding
from core.repositories.embedding_rows import PULLED, decode_any, decode_pulled

VECTOR = np.array([0.5, -1e-40], "<f4").tobytes()
LIVE: dict[str, Any] = {
    "product_id": {"S": "grüße/1"},
    "model_version": {"S": "m"},
    "model_shard": {"S": "m#0"},
    "embedding_vector": {"B": b64encode(VECTOR).decode()},
    "vector_dimension": {"N": "2"},
    "created_at": {"S": "2026-01-01T00:00:00.000000Z"},
    "updated_at": {"S": "2026-01-02T00:00:00.000000Z"},
}
WITHOUT_VECTOR = {name: LIVE[name] for name in LIVE if name != "embedding_vector"}
KEY = {"product_id": {"S": "p"}, "model_version": {"S": "m"}}
DELETED = {"S": "2026-01-03T00:00:00.000000Z"}


async def read(parser: WireParser, item: dict[str, Any]) -> Any:
    """The one row of a page, as the parser has it."""
    reply = {"Items": [item], "Count": 1, "LastEvaluatedKey": KEY}
    arrived = {"body": json.dumps(reply).encode(), "headers": {}, "status_code": 200}
    parsed = await parser.parse(arrived, None)
    assert parsed["LastEvaluatedKey"]["product_id"].S == "p"
    [row] = parsed["Items"]
    return row


@pytest.mark.parametrize(
    ("item", "vector"),
    [
        (LIVE, VECTOR),
        (LIVE | {"generation": {"N": "1700000000"}, "format": {"N": "1"}}, VECTOR),
        (WITHOUT_VECTOR, None),
        (KEY | {"updated_at": DELETED, "deleted_at": DELETED}, None),
        (LIVE | {"embedding_vector": {"L": [{"N": "0.5"}, {"N": "-1e-40"}]}}, VECTOR),
        (LIVE | {"embedding_vector": {"L": [{"N": "0.5"}, {"S": "x"}]}}, None),
        (LIVE | {"embedding_vector": {"S": "none"}}, None),
        (LIVE | {"embedding_vector": {"B": ""}}, b""),
        (LIVE | {"updated_at": {"N": "1"}, "unknown": {"M": {"a": {"BS": [""]}}}}, VECTOR),
        ({}, None),
    ],
)
async def test_a_row_is_the_same_among_many(item: dict[str, Any], vector: bytes | None) -> None:
    """Live ones, tombstones, older layouts, and what cannot be read."""
    pulled = decode_pulled(await read(PULLED, item))
    assert pulled == decode_any(await read(WireParser(), item))
    assert isinstance(pulled, Embedding)
    assert pulled.vector == vector


async def test_a_row_of_a_later_release_is_refused() -> None:
    """Not read as one of today's."""
    with pytest.raises(NewerFormat):
        decode_pulled(await read(PULLED, LIVE | {"format": {"N": "99"}}))
