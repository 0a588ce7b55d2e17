"""Filters on many rows at once: the rows that match a filter, from those of each condition."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from core.attributes.filters import AllOf, AnyOf, Exists, Filter, Not, OneOf, Within

Mask = NDArray[np.bool_]
"""Bool (rows,): which rows match."""
Condition = OneOf | Within | Exists
"""What a filter asks of one attribute."""


def select(condition: Filter, rows: int, matching: Callable[[Condition], Mask]) -> Mask:
    """Bool (rows,): the rows that match, given those of each condition, which may be changed."""
    match condition:
        case AllOf():
            mask = np.ones(rows, dtype=np.bool_)
            for each in condition.filters:
                mask &= select(each, rows, matching)
        case AnyOf():
            mask = np.zeros(rows, dtype=np.bool_)
            for each in condition.filters:
                mask |= select(each, rows, matching)
        case Not():
            mask = select(condition.filter, rows, matching)
            np.logical_not(mask, out=mask)
        case _:
            mask = matching(condition)
    return mask


def conditions_of(condition: Filter) -> int:
    """How many conditions a filter has, and as many for what joins them."""
    match condition:
        case AllOf() | AnyOf():
            return 1 + sum(map(conditions_of, condition.filters))
        case Not():
            return 1 + conditions_of(condition.filter)
        case _:
            return 1


def values_of(condition: Filter) -> int:
    """How many values a filter looks for."""
    match condition:
        case AllOf() | AnyOf():
            return sum(map(values_of, condition.filters))
        case Not():
            return values_of(condition.filter)
        case OneOf():
            values = (condition.strings, condition.numbers, condition.booleans)
            return sum(map(len, values))
        case _:
            return 2
