"""Columns in memory: whichever rows were added, a filter finds those of plain Python among them."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.attributes.appended_columns import AppendedColumns
from core.attributes.filters import parse_filter
from tests.unit.core.attributes.test_columns import ATTRIBUTES, FILTERS, expected


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.lists(ATTRIBUTES, max_size=6), max_size=5),
    condition=FILTERS,
    share=st.floats(0, 1),
    kept=st.sets(st.integers(0, 29)),
)
def test_a_filter_finds_what_plain_python_finds(
    parts: list[list[dict[str, Any]]], condition: Any, share: float, kept: set[int]
) -> None:
    """Among the rows up to any of them, later ones or not, and among those that are kept."""
    columns = AppendedColumns()
    rows: list[dict[str, Any]] = []
    for part in parts:
        columns.extend(part)
        rows += part
    parsed = parse_filter(condition)
    wanted = [expected(condition, row) for row in rows]
    first = round(share * len(rows))
    assert columns.select(parsed, first).tolist() == wanted[:first]
    left = sorted(row for row in kept if row < len(rows))
    compacted = columns.kept(np.array(left, dtype=np.int64), len(rows))
    compacted.extend(rows)
    assert compacted.select(parsed, len(left) + len(rows)).tolist() == (
        [wanted[row] for row in left] + wanted
    )
    assert columns.select(parsed, len(rows)).tolist() == wanted


def test_many_rows_take_little_memory() -> None:
    """About the values, their rows, and each string once."""
    columns = AppendedColumns()
    for start in range(0, 20_000, 200):
        columns.extend(
            [{"price": row / 7, "brand": f"b{row % 50}"} for row in range(start, start + 200)]
        )
    assert len(columns) == 20_000
    assert columns.nbytes < 20_000 * 60


def test_strings_that_no_row_has_any_more_are_forgotten() -> None:
    """An attribute with a new string at each change does not grow for ever."""
    columns = AppendedColumns()
    for round_ in range(30):
        columns.extend([{"seen_at": f"{round_}-{row}"} for row in range(100)])
        columns = columns.kept(np.arange(len(columns) - 100, len(columns)), len(columns))
    assert columns.nbytes < 200 * 150
    assert columns.select(parse_filter({"seen_at": "29-7"}), 100).nonzero()[0].tolist() == [7]
    assert not columns.select(parse_filter({"seen_at": "28-7"}), 100).any()
