import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from core.errors import Invalid
from core.models import Metric
from core.vectors.arrays import (
    NORM_MAX,
    REASONS,
    Floats,
    as_vector,
    check_rows,
    check_vector,
    json_floats,
    prepare,
    prepare_one,
    row_scores,
    top_k,
    unit_rows,
)

FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(-(2.0**59), 2.0**59, width=32),
)


def test_numbers_become_float32() -> None:
    """Numbers and float32 bytes give the same vector."""
    values = [0.1, -2.0, 3e-20]
    vector = as_vector(values)
    assert vector.dtype == np.float32
    assert as_vector(vector.tobytes()).tolist() == vector.tolist()


def test_bytes_of_no_whole_number_are_invalid() -> None:
    """Five bytes are no vector, and the error says how many there were."""
    with pytest.raises(Invalid, match="5 bytes"):
        as_vector(b"12345")


@pytest.mark.parametrize("values", [[10**400], [[1.0], [2.0]], ["a"]])
def test_what_is_no_list_of_numbers_is_invalid(values: list[float]) -> None:
    """Numbers beyond any float, nested lists and text are refused."""
    with pytest.raises(Invalid):
        as_vector(values)


@pytest.mark.parametrize(
    ("values", "metric", "reason"),
    [
        ([], "cosine", "is empty"),
        ([1.0, 2.0], "cosine", "has 2 numbers, the model version has 3"),
        ([1.0, np.nan, 2.0], "cosine", "position 1"),
        ([1.0, 2.0, 1e39], "l2", "position 2"),
        ([0.0, 0.0, 0.0], "cosine", "norm 0"),
        ([3e18, 0.0, 0.0], "ip", "3e+18"),
        ([3e18, 0.0, 0.0], "l2", "3e+18"),
    ],
)
def test_a_bad_vector_is_told_why(values: list[float], metric: Metric, reason: str) -> None:
    """Each reason names what the sender can look for."""
    told = check_vector(as_vector(values), metric, 3)
    assert told is not None
    assert reason in told


def test_a_vector_over_the_most_is_told_both_numbers() -> None:
    """The first vector of a model version is held against the limit."""
    told = check_vector(np.ones(4097, np.float32), "cosine", None)
    assert told == "has 4097 numbers, the most is 4096"


def test_good_vectors_are_told_nothing() -> None:
    """Zero under l2 and the largest float32 under cosine are fine."""
    assert check_vector(np.zeros(3, np.float32), "l2", 3) is None
    assert check_vector(np.full(3, 3e38, np.float32), "cosine", 3) is None


def test_rows_are_checked_with_reasons() -> None:
    """Every row has the code of its own reason."""
    rows = np.ones((5, 3), np.float32)
    rows[1, 2] = np.nan
    rows[2, 0] = -np.inf
    rows[3] = 0
    rows[4] = 1e30
    cosine = [REASONS[code] for code in check_rows(rows, "cosine")]
    assert cosine == ["valid", "not_finite", "not_finite", "zero_norm", "valid"]
    l2 = [REASONS[code] for code in check_rows(rows, "l2")]
    assert l2 == ["valid", "not_finite", "not_finite", "valid", "norm_too_large"]


@given(ROWS)
def test_rows_and_vectors_are_checked_alike(rows: Floats) -> None:
    """A row is quarantined where its write would have been refused."""
    for metric in ("cosine", "ip", "l2"):
        codes = check_rows(rows, metric)
        alone = [check_vector(row, metric, None) is not None for row in rows]
        assert (codes != 0).tolist() == alone


@given(ROWS)
def test_unit_rows_are_unit_and_stay(rows: Floats) -> None:
    """Norms are 1 to float32's last digit, and doing it again changes no bit."""
    rows = rows[check_rows(rows, "cosine") == 0]
    units = unit_rows(rows)
    assert units.dtype == np.float32
    assert np.allclose(np.linalg.norm(units.astype(np.float64), axis=1), 1.0, atol=1e-7)
    assert np.array_equal(unit_rows(units), units)
    for row, unit in zip(rows, units, strict=True):
        assert np.array_equal(prepare_one(row, "cosine").vector, unit)


def test_only_cosine_changes_rows() -> None:
    """Under ip and l2 the length of a vector means something."""
    rows = np.array([[3.0, 4.0]], np.float32)
    assert prepare(rows, "ip") is rows
    assert prepare(rows, "l2") is rows
    assert prepare(rows, "cosine").tolist() == [[np.float32(0.6), np.float32(0.8)]]


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=1, max_side=40), elements=FLOAT32))
def test_json_floats_read_back_as_the_same_float32(vector: Floats) -> None:
    """Every float32 comes back bit for bit, by a decimal no longer than numpy's shortest."""
    decimals = json_floats(vector)
    assert np.array_equal(np.array(decimals, np.float32), vector)
    for decimal, number in zip(decimals, vector, strict=True):
        assert decimal == float(str(number))


@given(st.lists(st.decimals(-1000, 1000, places=3), min_size=1, max_size=20))
def test_json_floats_give_back_what_was_sent(sent: list[float]) -> None:
    """0.1 sent comes back as 0.1, and not as 0.10000000149011612."""
    numbers = [float(number) for number in sent]
    assert json_floats(as_vector(numbers)) == numbers


def test_scores_are_larger_for_nearer() -> None:
    """Cosine, inner product, and the negated squared distance."""
    query = np.array([1.0, 0.0], np.float32)
    rows = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], np.float32)
    assert row_scores(prepare_one(query, "cosine"), rows).tolist() == [1.0, 0.0, -1.0]
    assert row_scores(prepare_one(query, "ip"), rows).tolist() == [2.0, 0.0, -1.0]
    assert row_scores(prepare_one(query, "l2"), rows).tolist() == [-1.0, -10.0, -4.0]


@given(ROWS, st.sampled_from(["cosine", "ip", "l2"]))
def test_a_pair_has_one_score(rows: Floats, metric: Metric) -> None:
    """The score does not depend on which of the two asks, nor on what else is scored."""
    rows = prepare(rows[check_rows(rows, metric) == 0], metric)
    for i, query in enumerate(rows):
        found = row_scores(prepare_one(query, metric), rows)
        assert np.isfinite(found).all()
        for j, row in enumerate(rows):
            assert found[j] == row_scores(prepare_one(query, metric), row[None])[0]
            assert found[j] == row_scores(prepare_one(row, metric), query[None])[0]
        if metric == "cosine":
            assert found[i] == 1.0


def test_scores_of_many_rows_are_those_of_few() -> None:
    """Blocks change nothing."""
    rows = np.random.default_rng(0).standard_normal((3000, 400)).astype(np.float32)
    query = prepare_one(rows[0], "cosine")
    found = row_scores(query, rows)
    assert np.array_equal(found[2000:2010], row_scores(query, rows[2000:2010]))


def test_the_largest_norms_have_finite_scores() -> None:
    """Two vectors of the largest norm, in opposite directions, still have a score."""
    far = np.array([NORM_MAX, 0.0], np.float32)
    assert np.isfinite(row_scores(prepare_one(far, "l2"), -far[None])).all()
    assert np.isfinite(row_scores(prepare_one(far, "ip"), -far[None])).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=300), st.integers(1, 50))
def test_ties_go_to_the_lower_row(values: list[int], k: int) -> None:
    """The order is that of a full sort by (-score, row)."""
    found = np.array(values, np.float32)
    wanted = sorted(range(len(values)), key=lambda row: (-values[row], row))[:k]
    assert top_k(found, k).tolist() == wanted
    rows = np.arange(len(values))
    assert top_k(found, k, rows).tolist() == wanted
