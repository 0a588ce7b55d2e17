"""Catalogues that are made larger, and what was measured on them."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.figures import Figure
from tests.benchmarks.grown import ANGLE, grown, ids_of, rotation
from tests.benchmarks.growth import PANELS, Part, markdown, panels, points_of
from tests.benchmarks.scaling import keep, kept, run
from tests.unit.benchmarks.test_table import MACHINE

random = np.random.default_rng(5)
REAL = random.standard_normal((50, 16)).astype(np.float32)


def part(name: str, rows: int, *figures: Figure, **notes: str) -> Part:
    """What was measured at a number of rows."""
    return Part(
        name=name,
        rows=rows,
        figures=list(figures),
        notes=notes,
        began_at="2026-01-01T00:00:00.000000Z",
        seconds=5.0,
        load_before=0.5,
        load_after=1.5,
        machine=MACHINE,
        commit="0123456789ab",
    )


def test_real_rows_come_first_and_alone_where_they_are_enough() -> None:
    """As they are."""
    assert np.array_equal(grown(REAL, 20), REAL[:20])
    assert np.array_equal(grown(REAL, 120)[:50], REAL)


def test_copies_are_turned_a_little_and_none_is_a_near_copy() -> None:
    """Each is closest to its own row, with a cosine that tells them apart."""
    made = grown(REAL, 120)
    assert made.shape == (120, 16)
    assert made.dtype == np.float32
    unit = made / np.linalg.norm(made, axis=1, keepdims=True)
    for copied in (unit[50:100], unit[100:]):
        cosines = np.einsum("nd,nd->n", copied, unit[: len(copied)])
        assert cosines.mean() == pytest.approx(np.cos(ANGLE), abs=0.06)
        assert cosines.max() < 0.995


def test_a_rotation_keeps_distances() -> None:
    """So a copy has the structure of the real rows."""
    turned = REAL @ rotation(16, np.random.default_rng(1))
    before = np.linalg.norm(REAL[:, None] - REAL[None], axis=2)
    after = np.linalg.norm(turned[:, None] - turned[None], axis=2)
    assert np.allclose(before, after, atol=1e-4)


def test_the_same_rows_are_made_again() -> None:
    """A run that goes on measures what the one before it did."""
    assert np.array_equal(grown(REAL, 120), grown(REAL, 120))
    assert np.array_equal(grown(REAL, 70), grown(REAL, 120)[:70])


def test_ids_are_in_ascending_order() -> None:
    """As a version has them."""
    assert ids_of(1001) == sorted(ids_of(1001))


def test_a_line_has_its_points_by_rows() -> None:
    """With the spread of their turns; what is 0 cannot be drawn."""
    parts = [
        part("serve", 1000, Figure("json: searches", [50.0, 40.0, 60.0], "a second")),
        part("serve", 10, Figure("json: searches", [500.0], "a second")),
        part("serve", 100, Figure("json: searches", [0.0], "a second")),
    ]
    points = points_of(parts, "json: searches")
    assert [(p.rows, p.lowest, p.median, p.highest) for p in points] == [
        (10, 500, 500, 500),
        (1000, 40, 50, 60),
    ]


def test_a_panel_has_only_lines_that_were_measured() -> None:
    """And one without any is left out."""
    measured = part("pull", 10, Figure("pull by k9", [5.0], "rows/s of a core"))
    (panel,) = panels([measured])
    assert list(panel.lines) == ["K9"]
    assert panel.unit == PANELS[panel.title][0]


def test_the_table_has_a_column_for_each_number_of_rows() -> None:
    """With figures, notes, and nothing where nothing was measured."""
    page = markdown(
        [
            part("build", 300_000, Figure("build, all stages", [70.0], "s"), family="hnsw_sq8"),
            part("build", 10_000, Figure("build, all stages", [2.0, 1.0, 3.0], "s")),
        ],
        real_rows=99_000,
    )
    assert "| figure | 10,000 rows | 300,000 rows |" in page
    assert "| build, all stages | 2.00 s (1.00 to 3.00) | 70.0 s |" in page
    assert "| family |  | hnsw_sq8 |" in page
    assert "The first 99,000 rows are real." in page
    assert "- Processor 3000, 2 cores, 8.0 GiB, kernel 6.1" in page


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that was not finished is no part."""
    found = part("pull", 20, Figure("pull by k9", [5.0], "rows/s of a core"))
    keep(tmp_path, found)
    (tmp_path / "20-build.unfinished").write_bytes(b"{")
    assert kept(tmp_path) == {(20, "pull"): found}
    monkeypatch.setattr("tests.benchmarks.scaling.load_catalogue", lambda _: REAL)
    plan = argparse.Namespace(file=tmp_path, to=tmp_path, rows=[20], only=["pull"])
    assert run(plan) == 0
    assert "pull of 20 rows is there" in capsys.readouterr().out
