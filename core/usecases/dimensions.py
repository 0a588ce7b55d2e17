"""The dimension of a new model version, from the rows of its first batch."""

from collections import Counter
from collections.abc import Iterable

from core.errors import FieldError, Invalid
from core.models import Metric
from core.vectors.arrays import Floats, check_vector

_SHOWN = 3
"""Dimensions named in an error, the most frequent first."""


def common_dimension(vectors: Iterable[Floats], metric: Metric, field: str) -> int | None:
    """The dimension of more than half of the valid vectors; None where none is valid.

    Vectors are float32 (d,), of any d each. An error is about `field`.

    Raises:
        Invalid: no dimension is that of more than half.
    """
    counts = Counter(
        len(vector) for vector in vectors if check_vector(vector, metric, None) is None
    )
    if not counts:
        return None
    dimension, rows = counts.most_common(1)[0]
    total = counts.total()
    if 2 * rows <= total:
        named = ", ".join(f"{d} (rows: {n})" for d, n in counts.most_common(_SHOWN))
        problem = f"has vectors of dimension {named}: no dimension is that of most of {total} rows"
        raise Invalid(
            f"a new model version takes its dimension from most of its first rows: {problem}",
            (FieldError(field, problem),),
        )
    return dimension
