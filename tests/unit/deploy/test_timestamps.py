import pytest

from deploy.data.migration.timestamps import full_date, read_timestamp


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2025-09-30T10:00:00Z", "2025-09-30T10:00:00.000000Z"),
        ("2025-09-30t10:00:00z", "2025-09-30T10:00:00.000000Z"),
        ("2025-09-30t10:00:00.5+02:00", "2025-09-30T08:00:00.500000Z"),
        ("2025-09-30T10:00:00.1234567+02:00", "2025-09-30T08:00:00.123456Z"),
        ("2025-09-30T10:00:00", "2025-09-30T10:00:00.000000Z"),
        ("2025-09-30 10:00:00.5", "2025-09-30T10:00:00.500000Z"),
        ("2025-09-30", "2025-09-30T00:00:00.000000Z"),
        (1759226400, "2025-09-30T10:00:00.000000Z"),
        (1759226400.25, "2025-09-30T10:00:00.250000Z"),
        (1759226400250, "2025-09-30T10:00:00.250000Z"),
    ],
)
def test_times_of_older_data_are_read(value: str | float, moment: str) -> None:
    """Into one form that sorts, in UTC where nothing else is said."""
    assert read_timestamp(value) == moment


@pytest.mark.parametrize(
    "value",
    [
        *("", "soon", "20250930", "2025-W40-2", "2025-13-01", "2025-09-30T25:00:00"),
        *("0001-01-01", "9999-12-31T23:59:59-12:00", 1e300, float("inf"), -1e15),
    ],
)
def test_what_is_no_time_is_refused(value: str | float) -> None:
    """With the one error, whatever is wrong with it."""
    with pytest.raises(ValueError, match="is not a time"):
        read_timestamp(value)


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2025-09-30", "2025-09-30"),
        ("2025-09-30T00:00:00.000Z", "2025-09-30"),
        ("2025-09-30 00:00:00", "2025-09-30"),
        ("2025-09-30t00:00:00z", "2025-09-30"),
        ("2025-09-30T00:00:00+02:00", "2025-09-30T00:00:00+02:00"),
        ("2025-09-30T10:00:00Z", "2025-09-30T10:00:00Z"),
    ],
)
def test_only_a_time_that_says_no_more_becomes_a_date(text: str, date: str) -> None:
    """Anything else stays as it is, for the check to refuse."""
    assert full_date(text) == date
