"""FAISS index families: plans, sizes, creation, training and search parameters."""

from typing import Any, Final

import faiss as _faiss
import msgspec
import numpy as np
from numpy.typing import NDArray

from core.models import Family, Metric
from core.vectors.arrays import Floats, Ints
from core.vectors.parameters import Layout

faiss: Final[Any] = _faiss
"""Its wrappers are created at run time, and are not in its type stubs."""
_SEED: Final = 1234
_GRAPH_LINKS: Final = 32
_GRAPH_EF_CONSTRUCTION: Final = 200
_GRAPH_NODE_BYTES: Final = 8 * _GRAPH_LINKS + 24
"""Two lists of 32-bit links at the bottom, one in 31 nodes with a list above, and the offsets."""
_CODE_BITS: Final = 8
_CENTROIDS: Final = 1 << _CODE_BITS
_CENTROID_ROWS: Final = 64
"""Rows to train on for each centroid; FAISS recommends at least 39."""
_CODE_ROUNDS: Final = 10
"""Of k-means for the codes. FAISS takes 25, for a longer build of the same recall (measured)."""
_QUANTIZER_ROWS: Final = 100_000
_SCALE_BITS_MAX: Final = 100
_LISTS_MAX: Final = 65_536
ADD_ROWS: Final = 16_384
"""Rows a call of `add`, between two reports of progress."""


class Plan(msgspec.Struct, frozen=True):
    """One index that may be tried."""

    family: Family
    layout: Layout
    bytes: int
    """Estimated size of the FAISS index, which the memory budget limits."""
    why: str
    lists: int = 0
    """Inverted lists of IVF."""
    code_bytes: int = 0
    """Of a row's product quantiser code."""

    def parameters(self) -> dict[str, int | float | str]:
        """What it is built with, for the manifest."""
        built: dict[str, int | float | str] = {"dimension": self.layout.dimension, "seed": _SEED}
        if self.family == "ivf_pq":
            return built | {"lists": self.lists, "code_bytes": self.code_bytes}
        if self.family == "exact":
            return {}
        return built | {"links": _GRAPH_LINKS, "ef_construction": _GRAPH_EF_CONSTRUCTION}


def plan_index(family: Family, rows: int, dimension: int, metric: Metric, norm_max: float) -> Plan:
    """What an index of this family over these rows is made of, and its size."""
    if family == "exact":
        layout = Layout(dimension, metric)
        return Plan(family, layout, rows * dimension * 4, "")
    step = _code_numbers(dimension) if family == "ivf_pq" else 1
    layout = _layout(family, dimension, metric, norm_max, step)
    if family == "ivf_pq":
        lists = max(1, min(int(4 * rows**0.5), rows // _CENTROID_ROWS, _LISTS_MAX))
        codes = layout.dimension // step
        size = rows * (codes + 8) + (lists + _CENTROIDS) * layout.dimension * 4
        return Plan(family, layout, size, "", lists, codes)
    width = layout.dimension * (4 if family == "hnsw_flat" else 1)
    return Plan(family, layout, rows * (width + _GRAPH_NODE_BYTES), "")


def _code_numbers(dimension: int) -> int:
    """Numbers of a row that one byte of a code stands for: fewer in small dimensions."""
    for least, numbers in ((128, 8), (32, 4), (8, 2)):
        if dimension >= least:
            return numbers
    return 1


def _layout(family: Family, dimension: int, metric: Metric, norm_max: float, step: int) -> Layout:
    whole = -(-dimension // step) * step
    if metric == "cosine":
        return Layout(whole, metric)
    # The next power of two over the largest norm: float32 squares of any input then fit.
    exponent = np.ceil(np.log2(norm_max)) if norm_max > 0 else 0.0
    scale = 2.0 ** -float(np.clip(exponent, -_SCALE_BITS_MAX, _SCALE_BITS_MAX))
    if metric == "l2" or family != "ivf_pq":
        return Layout(whole, metric, scale)
    return Layout(-(-(dimension + 1) // step) * step, metric, scale, augmented=True)


def create_index(plan: Plan) -> Any:
    """An empty FAISS index."""
    layout = plan.layout
    d = layout.dimension
    metric = faiss.METRIC_INNER_PRODUCT if layout.by_product() else faiss.METRIC_L2
    if plan.family == "ivf_pq":
        quantizer = faiss.IndexFlat(d, metric)
        index = faiss.IndexIVFPQ(quantizer, d, plan.lists, plan.code_bytes, _CODE_BITS, metric)
        # Codes of residuals need a table for each list under L2: two thirds slower, and measured
        # no better here with re-ranking. Under products one table serves all lists.
        index.by_residual = layout.by_product()
        index.use_precomputed_table = -1
        index.pq.cp.niter = _CODE_ROUNDS
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = _SEED
            clustering.min_points_per_centroid = 1
            clustering.max_points_per_centroid = 4 * _CENTROID_ROWS
        return index
    if plan.family == "hnsw_flat":
        index = faiss.IndexHNSWFlat(d, _GRAPH_LINKS, metric)
    else:
        index = faiss.IndexHNSWSQ(d, faiss.ScalarQuantizer.QT_8bit, _GRAPH_LINKS, metric)
    index.hnsw.efConstruction = _GRAPH_EF_CONSTRUCTION
    return index


def train(index: Any, plan: Plan, rows: Floats, row_ids: Ints) -> None:
    """Trains on a seeded sample of these rows, repeated where there are too few."""
    if plan.family == "hnsw_flat":
        return
    count = _QUANTIZER_ROWS
    if plan.family == "ivf_pq":
        count = max(plan.lists, _CENTROIDS) * _CENTROID_ROWS
    sampled = np.random.default_rng(_SEED).permutation(row_ids.shape[0])[:count]
    sample = plan.layout.rows(rows[np.sort(row_ids[sampled])])
    if plan.family == "ivf_pq" and sample.shape[0] < _CENTROIDS:
        sample = np.resize(sample, (_CENTROIDS, sample.shape[1]))
    index.train(sample)


def search_parameters(family: Family, breadth: int) -> Any:
    """FAISS's parameters of one search, passed with each call."""
    if family == "ivf_pq":
        return faiss.IVFPQSearchParameters(nprobe=breadth)
    return faiss.SearchParametersHNSW(efSearch=breadth)


def set_threads(threads: int) -> None:
    """Sets FAISS's OpenMP threads, at least 1, for the whole process."""
    faiss.omp_set_num_threads(threads)


def software() -> dict[str, str]:
    """Versions of FAISS and numpy, and the SIMD level that FAISS dispatches to."""
    return {
        "faiss": faiss.__version__,
        "numpy": np.__version__,
        "simd": str(faiss.SIMDConfig.get_level_name()),
    }


def stored_rows(index: Any) -> Floats | None:
    """float32 (n, d): the rows inside an HNSW index over float32, not a copy; None in others.

    Valid only as long as the index is referenced.
    """
    if not isinstance(index, faiss.IndexHNSWFlat):
        return None
    storage = faiss.downcast_index(index.storage)
    flat: Floats = faiss.rev_swig_ptr(storage.get_xb(), index.ntotal * index.d)
    return flat.reshape(index.ntotal, index.d)


def graph_links(index: Any) -> tuple[NDArray[np.int32], NDArray[np.uint64], int] | None:
    """The bottom level of an HNSW graph, not a copy; None of another index.

    Valid only as long as the index is referenced.

    Returns:
        The links int32 (any,), -1 where there are fewer; uint64 (n + 1,), where those of each
        position begin; and how many of them are of the bottom level.
    """
    if not isinstance(index, faiss.IndexHNSW):
        return None
    graph = index.hnsw
    links: NDArray[np.int32] = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    starts: NDArray[np.uint64] = faiss.rev_swig_ptr(graph.offsets.data(), graph.offsets.size())
    return links, starts, int(graph.nb_neighbors(0))


def row_products(query: Floats, rows: Floats, numbers: Ints, metric: Metric) -> Floats:
    """float32 (m,): approximate scores of these rows (m,) of `rows`, read where they are.

    The product for `cosine` and `ip`, the negated squared distance for `l2`; both arrays
    C-contiguous, `numbers` too.
    """
    count = numbers.shape[0]
    result = np.empty(count, dtype=np.float32)
    compute = faiss.fvec_L2sqr_by_idx if metric == "l2" else faiss.fvec_inner_products_by_idx
    compute(
        swig_ptr(result),
        swig_ptr(query),
        swig_ptr(rows),
        swig_ptr(numbers),
        rows.shape[1],
        1,
        count,
    )
    return np.negative(result, out=result) if metric == "l2" else result


swig_ptr: Final[Any] = faiss.swig_ptr
"""The address of an array, as the bare methods of an index take it."""
