"""Arguments of benchmarks."""

from pathlib import Path

import pytest

from tests.benchmarks.arguments import site_parser


def test_a_file_has_to_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing one is one line on the command line, before anything is started."""
    file = tmp_path / "rows.parquet"
    parser = site_parser("What it measures.\n\nMore.", turns=3)
    with pytest.raises(SystemExit):
        parser.parse_args(["--file", str(file)])
    assert f"there is no file {file}" in capsys.readouterr().err
    file.touch()
    given = parser.parse_args(["--file", str(file)])
    assert (given.file, given.rows, given.turns) == (file, 100_000, 3)
    assert parser.description == "What it measures."
