from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.attributes.column_format import COLUMNS_MAGIC
from core.attributes.column_writer import ColumnWriter
from core.attributes.columns import Columns
from core.attributes.filters import parse_filter
from core.errors import BuildFailed, Corrupt

ROWS: list[dict[str, Any]] = [
    {"brand": "acme", "price": 20, "stock": True, "tags": ["new", "red", "red"]},
    {"brand": "Zoë", "price": 20.5, "stock": False, "tags": []},
    {},
    {"brand": 7, "price": "20", "tags": "red"},
    {"price": -0.0, "stock": 1},
]


def written(path: Path, rows: list[dict[str, Any]], bytes_max: int = 1 << 30) -> Columns:
    """The columns of these rows, mapped."""
    writer = ColumnWriter(len(rows), bytes_max=bytes_max)
    for attributes in rows:
        writer.append(attributes)
    writer.write(path)
    return Columns(path, len(rows))


def expected(condition: Any, row: Mapping[str, Any]) -> bool:
    """What the contract says of a filter as it was sent, in plain Python."""
    return all(member(name, part, row) for name, part in condition.items())


def member(name: str, part: Any, row: Mapping[str, Any]) -> bool:
    """One member of a filter object."""
    if name == "$and":
        return all(expected(each, row) for each in part)
    if name == "$or":
        return any(expected(each, row) for each in part)
    if name == "$not":
        return not expected(part, row)
    operators = part if isinstance(part, dict) else {"$eq": part}
    return all(holds(operator, value, row.get(name)) for operator, value in operators.items())


def same(one: Any, other: Any) -> bool:
    """Whether two values are of one type and equal; all numbers are of one type."""
    if isinstance(one, bool) or isinstance(other, bool) or isinstance(one, str):
        return type(one) is type(other) and one == other
    return isinstance(other, int | float) and float(one) == float(other)


def holds(operator: str, value: Any, found: Any) -> bool:
    """One operator on what a row has under the name, None for nothing."""
    number = isinstance(found, int | float) and not isinstance(found, bool)
    has = found if isinstance(found, list) else [] if found is None else [found]
    return {
        "$eq": lambda: any(same(value, each) for each in has),
        "$ne": lambda: not any(same(value, each) for each in has),
        "$in": lambda: any(same(v, each) for v in value for each in has),
        "$nin": lambda: not any(same(v, each) for v in value for each in has),
        "$gt": lambda: number and float(found) > float(value),
        "$gte": lambda: number and float(found) >= float(value),
        "$lt": lambda: number and float(found) < float(value),
        "$lte": lambda: number and float(found) <= float(value),
        "$exists": lambda: (found is not None) is value,
        "$not": lambda: not all(holds(o, v, found) for o, v in value.items()),
    }[operator]()


NAMES = st.sampled_from(["a", "b", "c", "missing"])
STRINGS = st.sampled_from(["", "1", "true", "red", "blue", "ü", "\U0001f4a1", "reda"])
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([0.5, -0.0, 1.0, 2**53, 2**53 + 1, -1e300, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)
SCALARS = st.one_of(STRINGS, NUMBERS, st.booleans())
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.one_of(SCALARS, st.lists(STRINGS, max_size=4)), max_size=3
)
OPERATORS = st.one_of(
    st.fixed_dictionaries({"$eq": SCALARS}),
    st.fixed_dictionaries({"$ne": SCALARS}),
    st.fixed_dictionaries({"$in": st.lists(SCALARS, max_size=4)}),
    st.fixed_dictionaries({"$nin": st.lists(SCALARS, max_size=4)}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
    st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), NUMBERS, min_size=1),
)
CONDITIONS = st.one_of(SCALARS, OPERATORS, st.fixed_dictionaries({"$not": OPERATORS}))
FILTERS: Any = st.recursive(
    st.dictionaries(NAMES, CONDITIONS, max_size=3),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(rows=st.lists(ATTRIBUTES, max_size=40), condition=FILTERS)
@example(rows=[{"a": 0}, {"a": []}], condition={"a": {"$gt": -1}})  # most of them are cleared
def test_any_filter_on_any_rows_is_exact(
    rows: list[dict[str, Any]], condition: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The columns, and the rows one by one, match what a comprehension in Python does."""
    columns = written(tmp_path_factory.mktemp("columns") / "columns", rows)
    parsed = parse_filter(condition)
    wanted = [expected(condition, row) for row in rows]
    assert columns.select(parsed).tolist() == wanted
    assert [parsed.matches(row) for row in rows] == wanted
    few = columns.few(parsed, 7)
    assert few is None or few.tolist() == [row for row, match in enumerate(wanted) if match]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ({"n": {"$lt": 2}}, [1, 3]),
        ({"n": {"$in": [1, 3, "red"]}}, [0, 1, 3]),
        ({"n": "red"}, [0]),
        ({"tags": {"$in": ["a", "b"]}}, [0, 2]),
        ({"missing": 1}, []),
        ({"n": {"$gte": 1}}, None),
        ({"tags": True}, None),
        ({"n": {"$ne": 1}}, None),
        ({"n": 1, "tags": "a"}, None),
    ],
)
def test_rows_that_are_few(condition: Any, wanted: list[int] | None, tmp_path: Path) -> None:
    """Told by one condition at once, each once, ascending; not where they are more, or booleans."""
    rows: list[dict[str, Any]] = [
        {"n": "red", "tags": ["b", "a"]},
        {"n": 1},
        {"n": 9, "tags": "a"},
        {"n": 1},
        {"n": 7, "tags": True},
    ]
    columns = written(tmp_path / "columns", rows)
    found = columns.few(parse_filter(condition), 3)
    assert (None if found is None else found.tolist()) == wanted


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.6, 0.99, 1.0])
def test_ranges_of_many_rows(share: float, tmp_path: Path) -> None:
    """Whether few rows match or most, and whether some have no number."""
    random = np.random.default_rng(1)
    numbers = random.random(5000).round(3).tolist()
    rows: list[dict[str, Any]] = [
        {"n": number, "some": number} if i % 3 else {"n": number, "some": "text"}
        for i, number in enumerate(numbers)
    ]
    columns = written(tmp_path / "columns", rows)
    for name in ("n", "some"):
        for operator in ("$lt", "$lte", "$gt", "$gte"):
            condition = {name: {operator: share}}
            selected = columns.select(parse_filter(condition))
            assert selected.tolist() == [expected(condition, row) for row in rows]


def test_each_type_of_a_name_is_its_own(tmp_path: Path) -> None:
    """One name may have numbers in some rows, and text, lists or booleans in others."""
    columns = written(tmp_path / "columns", ROWS)
    for condition, rows in (
        ({"price": 20}, [0]),
        ({"price": "20"}, [3]),
        ({"price": 0}, [4]),
        ({"stock": True}, [0]),
        ({"stock": 1}, [4]),
        ({"tags": "red"}, [0, 3]),
        ({"tags": {"$exists": True}}, [0, 1, 3]),
        ({"brand": {"$in": ["Zoë", 7]}}, [1, 3]),
        ({"brand": {"$nin": ["Zoë", 7]}}, [0, 2, 4]),
    ):
        assert np.flatnonzero(columns.select(parse_filter(condition))).tolist() == rows


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """The order of names changes nothing."""
    written(tmp_path / "one", ROWS)
    turned = [dict(reversed(row.items())) for row in ROWS]
    written(tmp_path / "other", turned)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@given(rows=st.lists(ATTRIBUTES, max_size=12))
@settings(max_examples=50, deadline=None)
def test_each_row_is_given_back_as_it_was(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whole numbers stay whole, and lists have their order and what is in them twice."""
    columns = written(tmp_path_factory.mktemp("columns") / "columns", rows)
    assert repr([columns.attributes(row) for row in range(len(rows))]) == repr(
        [dict(sorted(row.items())) for row in rows]
    )


def test_a_selection_is_the_callers(tmp_path: Path) -> None:
    """Changing a mask changes no later answer, as the columns are never written to."""
    columns = written(tmp_path / "columns", ROWS * 100)
    for condition in ({"price": {"$exists": True}}, {"stock": True}, {}):
        first = columns.select(parse_filter(condition))
        assert first.any()
        count = np.count_nonzero(first)
        first[:] = False
        assert np.count_nonzero(columns.select(parse_filter(condition))) == count


def test_columns_over_the_limit_are_refused() -> None:
    """Before they fill the memory, and the error says what to do."""
    writer = ColumnWriter(1_000_000, bytes_max=10_000)
    with pytest.raises(BuildFailed, match="remove attributes"):
        writer.append({f"name-{number}": "x" * 100 for number in range(64)})


def test_the_limit_is_about_the_size_of_the_file(tmp_path: Path) -> None:
    """It counts what the file will have, to within a factor of two."""
    rows = [{"brand": f"brand-{i % 50}", "price": i / 7, "stock": i % 2 == 0} for i in range(4000)]
    columns = tmp_path / "columns"
    written(columns, rows)
    size = columns.stat().st_size
    with pytest.raises(BuildFailed):
        written(columns, rows, size // 2)
    written(columns, rows, 2 * size)


def test_rows_that_were_not_added() -> None:
    """Columns of fewer rows than the version has would answer for the wrong ones."""
    with pytest.raises(ValueError, match="0 of 1 rows"):
        ColumnWriter(1, bytes_max=1000).write(Path("never-written"))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda data: b"", "no columns"),
        (lambda data: data[:12], "no columns"),
        (lambda data: b"PK" + data[2:], "no columns"),
        (lambda data: data[:40], "cut short"),
        (lambda data: data[:-8], "cut short"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "cut short"),
        (lambda data: data.replace(b'{"rows":5', b'["rows":5'), "no valid directory"),
        (lambda data: data.replace(b'{"rows":5', b'{"rows":6'), "of 6 rows, not of 5"),
        (lambda data: data.replace(b'["floats"', b'["starts"'), "does not fit"),
        (lambda data: data.replace(b'["rows",', b'["cows",'), "no valid directory"),
    ],
)
def test_a_file_that_is_not_as_written(change: Any, part: str, tmp_path: Path) -> None:
    """It is corrupt, and the error names the file."""
    path = tmp_path / "columns"
    written(path, ROWS)
    data = path.read_bytes()
    assert data.startswith(COLUMNS_MAGIC)
    path.unlink()
    path.write_bytes(change(data))
    with pytest.raises(Corrupt, match=part) as caught:
        Columns(path, 5)
    assert caught.value.file == "columns"
