"""Vectors as arrays: reading, validation, normalisation, and the one definition of a score.

A score is larger for nearer: cosine, inner product, or the negated squared distance. It is summed
in float64 from float32 numbers, one pair at a time, so a pair has the same score everywhere.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.errors import Invalid
from core.limits import DIMENSION_MAX
from core.models import Metric

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

NORM_MAX: Final = 1e18
"""Largest norm under `ip` and `l2`: the score of two such vectors is still finite in float32."""

REASONS: Final = ("valid", "not_finite", "zero_norm", "norm_too_large")
"""The meaning of the codes of `check_rows`."""

WRONG_DIMENSION: Final = "wrong_dimension"
"""One more reason for quarantine; such rows are never part of an array."""

_NOT_FINITE: Final = 1
_ZERO_NORM: Final = 2
_NORM_TOO_LARGE: Final = 3
_BLOCK_NUMBERS: Final = 1 << 20
_ROUNDING: Final = 2.0**-24 * 1.001
"""The norm of a float32 unit row is within this of 1: each number is rounded by 2^-24 at most."""
_WIRE: Final = np.dtype("<f4")
_TINY: Final = float(np.finfo(np.float64).tiny)
_POWERS: Final = np.array([float(f"1e{e}") for e in range(23)])
"""10^0 to 10^22, which float64 represents exactly."""


class Query(msgspec.Struct, frozen=True, gc=False):
    """One query, prepared for searches and scores: made once for a search, by `prepare_one`."""

    vector: Floats
    """float32 (d,), as an index stores its rows: a unit vector under cosine."""
    exact: Doubles
    """float64 (d,): the same numbers."""
    square: float
    """Their squared norm, summed in float64."""
    metric: Metric


def as_vector(values: Sequence[float] | bytes) -> Floats:
    """float32 (d,), from numbers or from float32 little-endian bytes.

    What float32 cannot represent becomes infinite; `check_vector` refuses it.

    Raises:
        Invalid: the bytes are no whole number of float32, or a number is beyond float64.
    """
    if isinstance(values, bytes | bytearray | memoryview):
        if len(values) % 4:
            raise Invalid(f"a vector of {len(values)} bytes is no whole number of float32")
        packed = values
    else:
        try:
            packed = struct.pack(f"<{len(values)}f", *values)
        except (OverflowError, struct.error):  # beyond float32, or no numbers
            return _converted(values)
    return np.frombuffer(packed, dtype=_WIRE).astype(np.float32, copy=False)


def _converted(values: Sequence[float]) -> Floats:
    """What `as_vector` does with any numbers, in twice the time."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            vector: Floats = np.asarray(values, dtype=np.float32)
    except (OverflowError, ValueError, TypeError):
        raise Invalid("a vector is a list of numbers") from None
    if vector.ndim != 1:
        raise Invalid("a vector is a flat list of numbers")
    return vector


def check_vector(vector: Floats, metric: Metric, dimension: int | None) -> str | None:
    """Why a vector (d,) is not valid, for an error message; None where it is."""
    size = vector.shape[0]
    if size == 0:
        return "is empty"
    if dimension is not None and size != dimension:
        return f"has {size} numbers, the model version has {dimension}"
    if size > DIMENSION_MAX:
        return f"has {size} numbers, the most is {DIMENSION_MAX}"
    return _bad_numbers(vector, metric)


def _bad_numbers(vector: Floats, metric: Metric) -> str | None:
    exact = vector.astype(np.float64)
    norm = math.sqrt(exact.dot(exact))
    # float64 holds the square of every float32: a norm that is not finite has such a number.
    if not math.isfinite(norm):
        return f"is not finite as float32 at position {int(np.argmin(np.isfinite(vector)))}"
    if metric == "cosine":
        return "has norm 0, which has no direction under cosine" if norm == 0 else None
    if norm > NORM_MAX:
        return f"has a norm of {norm:.3g}, the most is {NORM_MAX:.0e}"
    return None


def row_blocks(rows: int, dimension: int) -> Iterator[slice]:
    """Slices over rows, each of about a million numbers, so that float64 copies stay small."""
    step = max(1, _BLOCK_NUMBERS // max(1, dimension))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))


def squared_norms(rows: Floats) -> Doubles:
    """float64 (n,): the squared norm of each row, without a float64 copy of all of them."""
    result = np.empty(rows.shape[0])
    with np.errstate(all="ignore"):
        for block in row_blocks(*rows.shape):
            exact = rows[block].astype(np.float64)
            result[block] = np.vecdot(exact, exact)
    return result


def check_rows(rows: Floats, metric: Metric) -> NDArray[np.int8]:
    """int8 (n,): an index into `REASONS` for each row, 0 for a valid one."""
    codes = np.zeros(rows.shape[0], dtype=np.int8)
    squares = squared_norms(rows)
    if metric == "cosine":
        codes[squares == 0] = _ZERO_NORM
    else:
        codes[squares > NORM_MAX**2] = _NORM_TOO_LARGE
    # float64 represents the square of every float32, so a norm is infinite only where a number is.
    codes[~np.isfinite(squares)] = _NOT_FINITE
    return codes


def unit_rows(rows: Floats) -> Floats:
    """float32 (n, d): rows of norm 1, rounded from float64; a row of zeros stays.

    Idempotent: a row that is a unit row already comes back unchanged.
    """
    norms = np.sqrt(squared_norms(rows))
    norms[(np.abs(norms - 1.0) <= _ROUNDING) | (norms == 0)] = 1.0
    result = np.empty(rows.shape, dtype=np.float32)
    for block in row_blocks(*rows.shape):
        np.divide(rows[block], norms[block, None], out=result[block], casting="same_kind")
    return result


def prepare(rows: Floats, metric: Metric) -> Floats:
    """Rows (n, d) as an index stores them: unit rows under cosine, unchanged otherwise."""
    return unit_rows(rows) if metric == "cosine" else rows


def prepare_one(query: Floats, metric: Metric) -> Query:
    """The same for one query (d,), without the cost of blocks."""
    exact = query.astype(np.float64)
    square = exact.dot(exact)
    if metric == "cosine" and square:
        norm = math.sqrt(square)
        if abs(norm - 1.0) > _ROUNDING:
            exact /= norm
            query = exact.astype(np.float32)
            exact = query.astype(np.float64)
            square = exact.dot(exact)
    return Query(query, exact, square, metric)


def json_floats(vector: Floats) -> list[float]:
    """The shortest decimals that read back as the same float32: 0.1 sent comes back as 0.1.

    6 to 9 digits identify a float32, and 6 are enough for any decimal of up to 6 that was sent.
    A whole number over an exact power of ten is rounded once, as parsing the decimal would be.
    """
    exact = vector.astype(np.float64)
    result = exact.copy()
    size = np.abs(exact)
    plain = (size >= 1e-13) & (size < 1e15)  # noqa: PLR2004 - where the powers below are exact
    todo = np.flatnonzero(plain)
    exponents = np.floor(np.log10(size[todo])).astype(np.int64)
    for digits in range(6, 10):
        scale = digits - 1 - exponents
        power = _POWERS[np.abs(scale)]
        value = exact[todo]
        tried = np.where(scale >= 0, np.rint(value * power) / power, np.rint(value / power) * power)
        good = tried.astype(np.float32) == vector[todo]
        result[todo[good]] = tried[good]
        todo, exponents = todo[~good], exponents[~good]
        if not todo.size:
            break
    rare = np.flatnonzero(~plain & np.isfinite(exact) & (exact != 0))
    for position in rare:
        result[position] = float(str(vector[position]))
    decimals: list[float] = result.tolist()
    return decimals


def pair_scores(queries: Floats, rows: Floats, metric: Metric) -> Floats:
    """float32, of the shape of both less the last axis: the score of each query with its row.

    Shapes follow numpy's broadcasting: (d,) with (n, d), (n, d) with (n, d), (m, 1, d) with
    (m, c, d). Both are copied as float64, so pass blocks.
    """
    exact = queries.astype(np.float64)
    squares = np.maximum(np.vecdot(exact, exact), _TINY) if metric == "cosine" else 1.0
    return _scores(exact, squares, rows, metric)


def row_scores(query: Query, rows: Floats) -> Floats:
    """float32 (n,): the score of one query (d,) with each row (n, d), prepared. Larger is nearer.

    The definitive score. numpy's vecdot sums each pair separately, in an order that depends only on
    d, so neither the other rows nor their number can change a score.
    """
    n, d = rows.shape
    square = query.square or 1.0  # a query of zeros has no direction: its scores are 0
    if n * d <= _BLOCK_NUMBERS:
        return _scores(query.exact, square, rows, query.metric)
    result = np.empty(n, dtype=np.float32)
    for block in row_blocks(n, d):
        result[block] = _scores(query.exact, square, rows[block], query.metric)
    return result


def _scores(query: Doubles, square: Doubles | float, rows: Floats, metric: Metric) -> Floats:
    """The scores of rows with queries in float64, of these squared norms (above 0)."""
    exact = rows.astype(np.float64)
    if metric == "l2":
        exact -= query
        distances: Doubles = np.vecdot(exact, exact)
        return (-distances).astype(np.float32)
    product: Doubles = np.vecdot(exact, query)
    if metric == "cosine":
        squares = np.vecdot(exact, exact)  # never 0: a row of zeros is not valid under cosine
        squares *= square
        product /= np.sqrt(squares, out=squares)
    return product.astype(np.float32)


def top_k(scores: Floats, k: int, rows: Ints | None = None) -> Ints:
    """int64 (min(k, n),): positions of the best, by (-score, row number).

    Args:
        scores: (n,), without NaN.
        k: how many, at least 1.
        rows: the row number of each position; the positions themselves when left out.
    """
    size = scores.shape[0]
    if size > 4 * k + 64:
        bound = np.partition(scores, size - k)[size - k]
        kept = np.flatnonzero(scores >= bound)
        return kept[_ordered(scores[kept], None if rows is None else rows[kept])[:k]]
    return _ordered(scores, rows)[:k]


def _ordered(scores: Floats, rows: Ints | None) -> Ints:
    if rows is None:
        return (-scores).argsort(kind="stable")
    return np.lexsort((rows, -scores))
