"""What benchmarks print and record."""

from pathlib import Path

import pytest

from tests.benchmarks.figures import (
    FILE,
    Figure,
    Report,
    at_least,
    at_most,
    number,
    ratios,
    read_figures,
)


def test_a_target_is_for_the_median() -> None:
    """At the bound it is reached, on the right side of it too, and on the other not."""
    turns = [1.0, 2.0, 9.0]
    for target, reached in (
        (at_most(2.0), True),
        (at_most(1.9), False),
        (at_least(2.0), True),
        (at_least(2.1), False),
    ):
        assert Figure("figure", turns, target=target).reached is reached
    assert Figure("figure", turns).reached is None


def test_a_line_has_median_spread_turns_and_target() -> None:
    """And says so where the target is not reached."""
    line = str(Figure("search", [150.0, 90.5, 120.0], "µs", at_most(100)))
    words = " ".join(line.split())
    assert words == "search 120 µs (90.5 to 150) of 3 to reach: at most 100, NOT REACHED"
    assert "NOT REACHED" not in str(Figure("search", [90.0], "µs", at_most(100)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0424, "0.042"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (-1234567.8, "-1,234,568"),
    ],
)
def test_numbers_have_three_digits_or_more(value: float, text: str) -> None:
    """Whatever their size."""
    assert number(value) == text


def test_what_is_recorded_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With values, units and targets, and that it came to its end."""
    monkeypatch.setenv(FILE, str(tmp_path / "recorded"))
    report = Report()
    report.add("one", (1, 2), "s", at_most(3))
    report.add("two", [0.5], target=at_least(0.4))
    assert report.end() == 0
    figures, ended = read_figures(tmp_path / "recorded")
    assert ended
    assert figures == [
        Figure("one", [1.0, 2.0], "s", at_most(3)),
        Figure("two", [0.5], "", at_least(0.4)),
    ]


def test_a_benchmark_that_was_broken_off_is_told_from_one_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it recorded until then counts, but for a line that is not whole."""
    file = tmp_path / "recorded"
    assert read_figures(file) == ([], False)
    monkeypatch.setenv(FILE, str(file))
    Report().add("one", [1.0])
    with file.open("ab") as broken:
        broken.write(b'{"name":"tw')
    figures, ended = read_figures(file)
    assert [figure.name for figure in figures] == ["one"]
    assert not ended


def test_the_status_tells_whether_all_was_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missed is enough; without a file nothing is written."""
    monkeypatch.delenv(FILE, raising=False)
    report = Report()
    report.add("missed", [2.0], target=at_most(1.0))
    report.add("reached", [2.0], target=at_most(3.0))
    assert report.end() == 1


def test_a_figure_has_values() -> None:
    """One without is an error of the benchmark."""
    with pytest.raises(ValueError, match="no values of none"):
        Report().add("none", [])


def test_ratios_are_of_the_same_turn() -> None:
    """So sides of different length are an error."""
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])
