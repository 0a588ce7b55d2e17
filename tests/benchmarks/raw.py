"""FAISS alone on a published version, one query at a time: what a search costs without K9.

    python -m tests.benchmarks.raw DIRECTORY QUERIES.npy [--seconds 3]

In one thread, with the search parameters of the version's manifest. Prints microseconds a query.
"""

import argparse
from pathlib import Path
from time import perf_counter

import faiss
import numpy as np

from core.index.files import INDEX
from core.index.manifest import MANIFEST, decode_manifest
from core.vectors.families import search_parameters, set_threads
from core.vectors.search import effort_for

K = 10


def measure(directory: Path, queries: Path, seconds: float) -> float:
    """Microseconds a query takes in `index.faiss` of a version, candidates for ranking included."""
    manifest = decode_manifest((directory / MANIFEST).read_bytes())
    set_threads(1)
    index = faiss.read_index(str(directory / INDEX), faiss.IO_FLAG_MMAP_IFC)
    breadth, candidates = effort_for(manifest.index.efforts, K)
    parameters = search_parameters(manifest.index.family, breadth)
    prepared = manifest.index.layout.query(np.load(queries))
    for row in range(200):
        index.search(prepared[row : row + 1], candidates, params=parameters)
    count, began = 0, perf_counter()
    while perf_counter() - began < seconds:
        row = count % len(prepared)
        index.search(prepared[row : row + 1], candidates, params=parameters)
        count += 1
    return 1e6 * (perf_counter() - began) / count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    print(measure(given.directory, given.queries, given.seconds))
