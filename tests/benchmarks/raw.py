"""FAISS alone on a published version: what a search costs without K9.

    python -m tests.benchmarks.raw DIRECTORY QUERIES.npy [--seconds 3]

In one thread, with the search parameters of the version's manifest. Prints, as JSON, microseconds
a query one at a time, one at a time for `K_BEYOND` results and vectors of rows, and `TOGETHER` at a
time.
"""

import argparse
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import faiss
import msgspec
import numpy as np

from core.index.files import INDEX, VECTORS
from core.index.manifest import MANIFEST, decode_manifest
from core.vectors.arrays import Floats
from core.vectors.families import search_parameters, set_threads
from core.vectors.parameters import effort_for
from tests.benchmarks.sent import K_BEYOND, TOGETHER, K


class Raw(msgspec.Struct, frozen=True):
    """Microseconds a query."""

    one: float
    beyond: float
    many: float


def measure(directory: Path, queries: Path, seconds: float) -> Raw:
    """What a query takes in `index.faiss` of a version, candidates for ranking included."""
    info = decode_manifest((directory / MANIFEST).read_bytes()).index
    set_threads(1)
    index = faiss.read_index(str(directory / INDEX), faiss.IO_FLAG_MMAP_IFC)
    asked = info.layout.query(np.load(queries))
    vectors = np.load(directory / VECTORS, mmap_mode="r")
    chosen = np.random.default_rng(19).permutation(len(vectors))[: len(asked)]
    rows = info.layout.query(np.ascontiguousarray(vectors[chosen]))

    def each_us(prepared: Floats, k: int, together: int) -> float:
        breadth, candidates = effort_for(info.efforts, k)
        parameters = search_parameters(info.family, breadth)
        return _each_us(index, prepared, candidates, parameters, together, seconds / 3)

    return Raw(each_us(asked, K, 1), each_us(rows, K_BEYOND, 1), each_us(asked, K, TOGETHER))


def _each_us(
    index: Any, prepared: Floats, candidates: int, parameters: Any, together: int, seconds: float
) -> float:
    starts = range(0, len(prepared) - together + 1, together)
    for start in starts[: 200 // together + 1]:
        index.search(prepared[start : start + together], candidates, params=parameters)
    count, began = 0, perf_counter()
    while perf_counter() - began < seconds:
        start = starts[count % len(starts)]
        index.search(prepared[start : start + together], candidates, params=parameters)
        count += 1
    return 1e6 * (perf_counter() - began) / (count * together)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    found = measure(given.directory, given.queries, given.seconds)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
