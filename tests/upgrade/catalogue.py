"""A catalogue for which an index is built, and the recall of what an API answers from it."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.upgrade.environment import Client, code

Vectors = NDArray[np.float32]

MODEL: Final = "legacy"
"""Created by the earlier release."""
K: Final = 10
_MIXED: Final = 1000
_QUERIES: Final = 200
_BATCH: Final = 1000
_SAME: Final = 1e-5
"""Scores that differ by less are of the same distance."""
_SAMPLE: Final = Path(__file__).parents[2] / "deploy" / "local" / "catalogue-5k.parquet"


@cache
def sample() -> dict[str, Vectors]:
    """6,000 rows of 384 numbers: over two million, from which on an index is built.

    The sample catalogue, and rows halfway between two of its rows.
    """
    table = pq.read_table(_SAMPLE)
    rows = np.array(table["vector"].to_pylist(), dtype=np.float32)
    random = np.random.default_rng(7)
    left, right = random.integers(0, len(rows), (2, _MIXED))
    mixed = (rows[left] + rows[right]).astype(np.float32)
    names = [*table["product_id"].to_pylist(), *(f"mixed-{i:04d}" for i in range(_MIXED))]
    return dict(zip(names, np.concatenate([rows, mixed]), strict=True))


@cache
def queries() -> Vectors:
    """(200, d) queries like the rows of the sample, equal to none."""
    random = np.random.default_rng(11)
    all_rows = np.stack(list(sample().values()))
    chosen = all_rows[random.integers(0, len(all_rows), _QUERIES)]
    noise = random.normal(0, 0.02, chosen.shape)
    return (chosen + noise).astype(np.float32)


async def store(client: Client, model: str, rows: Mapping[str, Vectors]) -> None:
    """Puts rows in batches of 1,000."""
    entries = [{"product_id": name, "vector": row.tobytes()} for name, row in rows.items()]
    for start in range(0, len(entries), _BATCH):
        reply = await send(
            client,
            f"/models/{model}/embeddings:batch",
            {"embeddings": entries[start : start + _BATCH]},
        )
        code(reply, httpx.codes.OK)


async def send(client: Client, path: str, body: Any, **headers: str) -> httpx.Response:
    """A POST of msgpack, whose vectors are the floats as they are."""
    content = msgspec.msgpack.encode(body)
    return await client.post(
        path, content=content, headers={"content-type": "application/msgpack", **headers}
    )


async def search(client: Client, model: str, asked: Vectors) -> tuple[list[list[str]], str]:
    """The product ids that a release answers with, and the build that answered."""
    body = {"vectors": [row.tobytes() for row in asked], "k": K}
    found = code(await send(client, f"/models/{model}/search", body), httpx.codes.OK).json()
    ids = [[hit["product_id"] for hit in hits] for hits in found["results"]]
    return ids, found["index"]["build_id"]


async def recall(client: Client, model: str, rows: Mapping[str, Vectors]) -> tuple[float, str]:
    """The share of the truly nearest rows that a release answers with, and the build.

    Of rows at the same distance any is right.
    """
    asked = queries()
    found, build_id = await search(client, model, asked)
    number = {name: row for row, name in enumerate(rows)}
    vectors = np.stack(list(rows.values()))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = asked @ unit.T
    least = np.partition(scores, -K, axis=1)[:, -K] - _SAME
    hits = sum(
        own[number[name]] >= bound
        for own, bound, names in zip(scores, least, found, strict=True)
        for name in names
        if name in number
    )
    return float(hits) / (K * len(asked)), build_id
