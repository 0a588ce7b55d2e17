"""The table and the plot of all benchmarks."""

import importlib.util
import sys
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks.figures import Figure, at_least, at_most
from tests.benchmarks.machine import Machine, machine
from tests.benchmarks.plots import standing
from tests.benchmarks.results import Result, markdown
from tests.benchmarks.table import commands, run

MACHINE = Machine("Processor 3000", 2, 8 * 2**30, "6.1", {"Python": "3.11.7", "numpy": "2.4"})
GOOD = Result(
    name="search",
    command="python -m tests.benchmarks.search",
    began_at="2026-01-01T00:00:00.000000Z",
    seconds=12.0,
    status=0,
    ended=True,
    figures=[
        Figure("own", [150.0, 160.0, 155.0], "µs", at_most(180)),
        Figure("p99 | json", [9.0], "ms"),
    ],
    load_before=0.1,
    load_after=2.5,
    machine=MACHINE,
    commit="0123456789ab",
)


def test_a_row_has_the_figure_as_it_was_measured() -> None:
    """Those with a target in a table of their own, and machine, versions and load below."""
    page = markdown([GOOD])
    assert "| own | at most 180 | 155 µs | 150 to 160 | 3 | yes | search |" in page
    assert "| p99 \\| json | 9.00 ms | 9.00 to 9.00 | 1 | search |" in page
    assert page.index("| own |") < page.index("## Other figures") < page.index("| p99")
    assert "Processor 3000, 2 cores, 8.0 GiB, kernel 6.1" in page
    assert "Python 3.11.7, numpy 2.4" in page
    assert "| 0.10, 2.50 | 0123456789ab |" in page


def test_what_is_missed_or_failed_is_told() -> None:
    """Neither of them is good."""
    missed = msgspec.structs.replace(
        GOOD, figures=[Figure("share", [0.5], target=at_least(0.9))], name="missed"
    )
    broken = msgspec.structs.replace(GOOD, ended=False, status=1, name="broken")
    empty = msgspec.structs.replace(GOOD, figures=[], name="empty")
    assert [result.good for result in (GOOD, missed, broken, empty)] == [True, False, False, False]
    page = markdown([GOOD, missed, broken, empty])
    assert "| 0.500 to 0.500 | 1 | **no** | missed |" in page
    assert "- **broken failed** with exit status 1, after 2 figures: see broken.log." in page
    assert "- **empty failed**" in page
    assert "missed failed" not in page


def test_results_of_two_machines_are_told_apart() -> None:
    """Each with what ran there."""
    other = msgspec.structs.replace(MACHINE, processor="Processor 4000")
    page = markdown([GOOD, msgspec.structs.replace(GOOD, name="pull", machine=other)])
    assert page.count("## Machine") == 2
    assert "- of pull" in page


def test_a_bar_grows_with_how_good_a_figure_is() -> None:
    """Twice as good as the target is 2, whichever side is the better one."""
    fast = standing(Figure("rate", [4.0, 2.0, 6.0], target=at_least(2)))
    assert (fast.median, fast.lowest, fast.highest) == (2, 1, 3)
    short = standing(Figure("time", [4.0, 2.0, 8.0], target=at_most(8)))
    assert (short.median, short.lowest, short.highest) == (2, 1, 4)
    with pytest.raises(ValueError, match="no target"):
        standing(Figure("none", [1.0]))


def test_this_machine_is_described() -> None:
    """With what a reader needs to judge the figures."""
    found = machine()
    assert found.processor
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.versions.keys() == {"Python", "faiss-cpu", "numpy", "uvloop", "litestar"}


@pytest.mark.parametrize("quick", [False, True])
def test_every_command_is_a_module(quick: bool) -> None:  # noqa: FBT001
    """Chroma's only where it is named."""
    named = commands(Path("/rows.parquet"), Path("/bin/chroma"), quick=quick)
    for name in named:
        assert importlib.util.find_spec(f"tests.benchmarks.{name}") is not None, name
    assert named.keys() - commands(Path("/rows.parquet"), None, quick=quick).keys() == {"chroma"}


def test_a_benchmark_runs_as_a_process(tmp_path: Path) -> None:
    """Its figures and what it printed are kept, and the command without this machine's folders."""
    result = run("layouts", [], tmp_path)
    assert result.good
    assert result.status == 0
    assert "bytes: Binary to list" in {figure.name for figure in result.figures}
    assert "bytes: Binary to list" in (tmp_path / "layouts.log").read_text()


def test_a_benchmark_that_fails_has_a_result(tmp_path: Path) -> None:
    """So the others can go on."""
    result = run("starting", ["--file", str(tmp_path / "missing.parquet")], tmp_path)
    assert result.failed
    assert result.status == 2
    assert result.command.endswith("--file missing.parquet")
    assert "there is no file" in (tmp_path / "starting.log").read_text()
    assert sys.executable not in result.command
