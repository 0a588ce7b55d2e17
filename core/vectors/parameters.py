"""The parameters of an index: limits, layout, search efforts, measured recall. Imports no FAISS."""

from collections.abc import Sequence

import msgspec
import numpy as np

from core.models import Family, Metric
from core.vectors.arrays import Floats, row_blocks, squared_norms, unit_rows


class IndexLimits(msgspec.Struct, frozen=True):
    """Limits of the size and cost of an index, and of small sets of rows."""

    exact_numbers_max: int = 2_000_000
    """Rows x dimension up to which every search scans all rows: about 0.3 ms on one core. Graphs
    are faster from about 1,000 rows of 384, but need building and miss some neighbours."""
    exact_fallback_numbers_max: int = 50_000_000
    """The same where no index reaches the target recall: about 10 ms."""
    graph_float_bytes_max: int = 64 * 1024**2
    """Graphs over float32 rows up to here; above it over a byte a number first, ranked again by
    float32: measured as fast or faster at the same recall, in a third of the memory."""
    index_bytes_max: int = 4 * 1024**3
    """Memory of the FAISS index; vectors for ranking stay in a mapped file beside it."""
    held_out_min: int = 1000
    held_out_max: int = 10_000
    """1 % of more than a million rows measures no better, and its truth costs n^2."""
    ef_search_max: int = 1024
    probe_share_max: float = 0.5
    """Of the inverted lists."""


class ZeroRecall(msgspec.Struct, frozen=True):
    """Queries with a recall of 0, which a mean does not show."""

    queries: int
    count: int
    """Of these queries."""
    upper: float
    """Upper confidence bound of their share among all queries like these (97.5 %)."""
    method: str
    copies: float = 0.0
    """The share of copies and near copies that have a recall of 0; one row of each larger group is
    the query for all."""


class Recall(msgspec.Struct, frozen=True):
    """The measured recall of an index, and how it was measured."""

    value: float
    """Mean over the queries; its lower bound must reach the target."""
    at: int
    target: float
    queries: int
    method: str
    lower: float = 1.0
    """Lower confidence bound of the mean over all queries like these (97.7 %)."""
    zero: ZeroRecall | None = None
    """None in versions of earlier releases, which did not measure it."""


class RecallBand(msgspec.Struct, frozen=True):
    """The measured recall of filtered searches, for a range of the share of rows they allow."""

    share_max: float
    """Of all rows: from over that of the band before."""
    recall: float
    """Mean at 10, over filters that have nothing to do with the vectors."""
    queries: int
    """Measured ones; 0 where every allowed row is scored."""


def recall_of(bands: Sequence[RecallBand], share: float) -> float | None:
    """The recall of a search that allows this share of the rows, 0 to 1.

    None where it was not measured, as in versions of earlier releases. Without a filter it is the
    recall of the index instead.
    """
    return next((band.recall for band in bands if share <= band.share_max), None)


class Trial(msgspec.Struct, frozen=True):
    """One measurement made while tuning the search parameters."""

    family: Family
    k: int
    breadth: int
    candidates: int
    recall: float
    zero_recall: int | None = None
    """Queries with a recall of 0, where that was measured."""
    zero_recall_queries: int | None = None


class Layout(msgspec.Struct, frozen=True):
    """How prepared rows and queries are laid out for FAISS, with the same order of scores."""

    dimension: int
    """Numbers a row in the index: at least the rows' own, the further ones 0."""
    metric: Metric
    scale: float = 1.0
    """Every row is multiplied by it; a power of two, so that nothing is rounded."""
    augmented: bool = False
    """The number after the row's own makes all norms 1, so that under `ip` the nearest by distance
    is the one of the largest product (Bachrach et al. 2014, the reduction of MIPS to NNS). Inverted
    lists need it where lengths differ; in a graph it was measured to be far worse than products."""

    def by_product(self) -> bool:
        """Whether FAISS compares by inner product; by distance otherwise."""
        return self.metric == "cosine" or (self.metric == "ip" and not self.augmented)

    def plain(self, dimension: int) -> bool:
        """Whether the rows in the index are the prepared rows, number by number."""
        return self.dimension == dimension and self.scale == 1.0

    def rows(self, rows: Floats) -> Floats:
        """float32 (n, dimension), C-contiguous."""
        n, d = rows.shape
        if d == self.dimension and self.scale == 1.0:
            return np.ascontiguousarray(rows)
        result = np.zeros((n, self.dimension), dtype=np.float32)
        np.multiply(rows, np.float32(self.scale), out=result[:, :d])
        if self.augmented:
            for block in row_blocks(n, d):
                left = np.maximum(0.0, 1.0 - squared_norms(result[block, :d]))
                result[block, d] = np.sqrt(left)
        return result

    def query(self, query: Floats) -> Floats:
        """float32 (m, dimension) of queries (m, d), C-contiguous."""
        if self.metric != "ip":
            return self.rows(query)
        # The order of products does not depend on the query's norm, and nothing leaves float32's
        # range, nor is lost in a distance to rows of norm 1, where it is 1 too.
        result = np.zeros((query.shape[0], self.dimension), dtype=np.float32)
        result[:, : query.shape[1]] = unit_rows(query)
        return result


class Effort(msgspec.Struct, frozen=True):
    """The tuned search parameters for k rows."""

    k: int
    breadth: int
    """efSearch of HNSW, nprobe of IVF."""
    candidates: int
    """Requested from the index, to be ranked by their float32 rows."""


class IndexInfo(msgspec.Struct, frozen=True):
    """Which index a version has, why, and how it is searched. Part of the manifest."""

    family: Family
    why: str
    layout: Layout
    bytes: int
    """Of `index.faiss`; 0 for the family exact."""
    build: dict[str, int | float | str]
    positions: int = 0
    """Rows in the FAISS index, one for each group of copies; 0 for the family exact."""
    efforts: tuple[Effort, ...] = ()
    """Ascending by k; empty for the family exact."""
    norm_max: float = 1.0
    """The largest norm of a row."""
    near_copies: int = 0
    """Rows that are not in the FAISS index, as they are almost equal to one that is."""
    near_copies_max: int = 0
    """Rows of the largest group of near copies: a search that finds it scores each of them."""


def effort_for(efforts: tuple[Effort, ...], k: int) -> tuple[int, int]:
    """Breadth and candidates for k: on the line between two tuned ones, in proportion beyond."""
    low = efforts[0]
    if k <= low.k:
        return low.breadth, low.candidates
    high = efforts[-1]
    share = (k - low.k) / (high.k - low.k) if high.k > low.k else 1.0
    if k >= high.k:
        grown = k / high.k
        return int(np.ceil(high.breadth * grown)), int(np.ceil(high.candidates * grown))
    breadth = low.breadth + share * (high.breadth - low.breadth)
    count = low.candidates + share * (high.candidates - low.candidates)
    return int(np.ceil(breadth)), max(k, int(np.ceil(count)))
