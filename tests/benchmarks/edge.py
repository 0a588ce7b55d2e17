"""Qdrant's engine beside K9's: `ENVIRONMENT/bin/python tests/benchmarks/edge.py DIRECTORY CORE`.

`tests.benchmarks.filters` runs this as a process of its own, in an environment that has
qdrant-edge-py and numpy and nothing of K9. The directory has `vectors.npy` (n, d), `queries.npy`
and `attributes.npz`, a number of each row by name; the shard is made in it at the first start, and
used again. Graph and payload indexes are as the engine has them by default, all in one segment.

After a first line that says what is there, each line of standard input asks `{"k", "ef", "asked":
[[query number, attribute, at least, below], ...]}`, all on one core, and is answered with `{"ids":
[[row, ...], ...], "ms": processor milliseconds of one search}`.
"""

import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

edge: Final[Any] = importlib.import_module("qdrant_edge")
_PAGE: Final = 2000


def opened(directory: Path) -> Any:
    """The shard with every row, its attributes and an index on each of them."""
    vectors = np.load(directory / "vectors.npy", mmap_mode="r")
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(vectors.shape[1], edge.Distance.Dot),
        hnsw_config=edge.HnswIndexConfig(16, 100, 10_000),
        optimizers=edge.EdgeOptimizersConfig(
            indexing_threshold=1000, default_segment_number=1, max_segment_size=10**7
        ),
        max_search_threads=1,
    )
    path, whole = directory / "shard", directory / "shard-is-whole"
    if whole.exists():
        return edge.EdgeShard.load(str(path), config)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    shard = edge.EdgeShard.create(str(path), config)
    attributes = dict(np.load(directory / "attributes.npz"))
    for name in attributes:
        kind = edge.PayloadSchemaType.Float
        shard.update(edge.UpdateOperation.create_field_index(name, kind))
    for start in range(0, vectors.shape[0], _PAGE):
        points = [
            edge.Point(
                row,
                vectors[row].tolist(),
                {name: float(values[row]) for name, values in attributes.items()},
            )
            for row in range(start, min(vectors.shape[0], start + _PAGE))
        ]
        shard.update(edge.UpdateOperation.upsert_points(points))
    while shard.optimize():
        pass
    shard.flush()
    whole.touch()
    return shard


def answer(shard: Any, lines: list[list[float]], asked: dict[str, Any]) -> dict[str, Any]:
    """The rows found for each question, and the processor time that one took."""
    parameters = edge.SearchParams(hnsw_ef=asked["ef"])
    found = []
    began = time.process_time()
    for number, name, low, below in asked["asked"]:
        condition = edge.FieldCondition(name, range=edge.RangeFloat(gte=low, lt=below))
        request = edge.QueryRequest(
            limit=asked["k"],
            query=edge.Query.Nearest(lines[number]),
            filter=edge.Filter(must=[condition]),
            params=parameters,
        )
        found.append([point.id for point in shard.query(request)])
    spent = time.process_time() - began
    return {"ids": found, "ms": 1000 * spent / len(found)}


def main() -> None:
    """Answers until standard input ends."""
    directory, core = Path(sys.argv[1]), int(sys.argv[2])
    began = time.perf_counter()
    shard = opened(directory)
    os.sched_setaffinity(0, {core})
    lines = np.load(directory / "queries.npy").tolist()
    info = shard.info()
    told = {
        "points": info.points_count,
        "indexed": info.indexed_vectors_count,
        "segments": info.segments_count,
        "seconds": time.perf_counter() - began,
    }
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(shard, lines, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
