"""What a running K9 has published, held against exact search by numpy.

    python -m tests.benchmarks.published [--model minilm-l6-v2] [--catalogue FILE] [--unseen FILE]
        [--queries 1000]

Over HTTP, from the directory of a running `make dev`: recall@10 of searches whose queries are no
rows, and the similarity matrix against the exact top-k of every row. The catalogue is the file
that the model version was imported from. Queries are rows of `--unseen` that the catalogue does not
have; without it, halfway points between random rows, which are harder than queries like the rows.
"""

import argparse
import asyncio
import io
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deploy.cli.environment import api_access, enter

K = 10
MATRIX_ROWS = 5_000
ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "deploy/local/catalogue-5k.parquet"
Floats = NDArray[np.float32]


def read(path: Path) -> dict[str, Floats]:
    """The vectors of a catalogue by product id, float32 (d,) each."""
    table = pq.read_table(path)
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = flat.astype(np.float32).reshape(len(table), -1)
    return dict(zip(table["product_id"].to_pylist(), vectors, strict=True))


def unit(rows: Floats) -> NDArray[np.float64]:
    """float64 (n, d): rows of norm 1."""
    exact: NDArray[np.float64] = rows.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    return exact


def queries_for(
    catalogue: dict[str, Floats], unseen: Path | None, count: int
) -> tuple[Floats, str]:
    """Queries (count, d) that are no rows, and where they are from."""
    generator = np.random.default_rng(7)
    if unseen is not None:
        fresh = [vector for name, vector in read(unseen).items() if name not in catalogue]
        if len(fresh) < count:
            sys.exit(f"{unseen} has {len(fresh)} rows that the catalogue does not have")
        chosen = generator.choice(len(fresh), count, replace=False)
        return np.stack([fresh[i] for i in chosen]), f"rows of {unseen.name} not in it"
    rows = np.stack(list(catalogue.values()))
    pairs = generator.integers(0, len(rows), (count, 2))
    halfway: Floats = (rows[pairs[:, 0]] + rows[pairs[:, 1]]) / np.float32(2)
    return halfway, "halfway points between random rows"


async def check(model: str, catalogue: dict[str, Floats], unseen: Path | None, count: int) -> None:
    """Asks the running API, and prints what it found."""
    ids = sorted(catalogue, key=str.encode)
    rows = unit(np.stack([catalogue[name] for name in ids]))
    settings, stack = enter()
    url, token = await api_access(settings, stack, os.environ)
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        queries, source = queries_for(catalogue, unseen, count)
        found, index = await search(session, model, queries)
        exact = unit(queries) @ rows.T
        kth = np.partition(exact, -K, axis=1)[:, -K]
        position = {name: i for i, name in enumerate(ids)}
        hits = [
            sum(exact[i, position[name]] >= kth[i] - 1e-6 for name in names)
            for i, names in enumerate(found)
        ]
        print(f"queries: {count} {source}")
        print(
            f"recall@{K}: {sum(hits) / (K * count):.4f} (the build measured {index['recall']:.4f})"
        )
        await check_matrix(session, model, ids, rows)


async def search(
    session: aiohttp.ClientSession, model: str, queries: Floats
) -> tuple[list[list[str]], dict[str, Any]]:
    """The ids that the index answers for each query."""
    found: list[list[str]] = []
    index: dict[str, Any] = {}
    for start in range(0, len(queries), 250):
        body = {"vectors": queries[start : start + 250].tolist(), "k": K}
        async with session.post(f"/models/{model}/search", json=body) as reply:
            reply.raise_for_status()
            answer = await reply.json()
        index = answer["index"]
        found += [[hit["product_id"] for hit in hits] for hits in answer["results"]]
    return found, index


async def check_matrix(
    session: aiohttp.ClientSession, model: str, ids: list[str], rows: NDArray[np.float64]
) -> None:
    """The published Parquet, row by row, against the exact top-k."""
    async with session.get(f"/models/{model}/matrix") as reply:
        reply.raise_for_status()
        matrix = await reply.json()
    address = matrix["files"]["parquet"]["url"]
    async with aiohttp.ClientSession() as plain, plain.get(address) as reply:
        reply.raise_for_status()
        table = pq.read_table(io.BytesIO(await reply.read()))
    position = {name: i for i, name in enumerate(ids)}
    left = np.array([position[name] for name in table["product_id"].to_pylist()])
    right = np.array([position[name] for name in table["neighbor_id"].to_pylist()])
    scores = table["score"].to_numpy()
    k = int(table["rank"].to_numpy().max()) + (int(table["rank"].to_numpy().min()) == 0)
    worst = missed = 0.0
    assert (left == np.repeat(np.arange(len(ids)), k)).all(), "every row has k neighbours, in order"
    sample = np.random.default_rng(3).permutation(len(ids))[:MATRIX_ROWS]
    for row in sample.tolist():
        mine = slice(row * k, (row + 1) * k)
        exact = rows @ rows[row]
        exact[row] = -np.inf
        true = np.sort(exact)[::-1][:k]
        given = exact[right[mine]]
        missed += int((given < true[-1] - 1e-6).sum())
        worst = max(worst, float(np.abs(np.sort(given)[::-1] - true).max()))
        worst = max(worst, float(np.abs(scores[mine] - given).max()))
    print(f"matrix: {len(ids):,} rows x {k}, {len(sample):,} of them held against numpy:")
    print(f"        {int(missed)} neighbours that are not of the exact top-{k};")
    print(f"        largest difference of a score from numpy's: {worst:.1e}")


def main() -> None:
    """Reads the arguments, and checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm-l6-v2")
    parser.add_argument("--catalogue", type=Path, default=SAMPLE)
    parser.add_argument("--unseen", type=Path, help="a catalogue with other rows of the same kind")
    parser.add_argument("--queries", type=int, default=1000)
    asked = parser.parse_args()
    for path in (asked.catalogue, asked.unseen):
        if path is not None and not path.exists():
            sys.exit(f"{path} is not there")
    asyncio.run(check(asked.model, read(asked.catalogue), asked.unseen, asked.queries))


if __name__ == "__main__":
    main()
