"""Branch coverage of a run: `pytest -p tests.branch_coverage`, as `make test` has it.

SlipCover puts probes into the code when it is imported, and takes out those that were passed.
coverage.py has to trace on Python 3.11: tests took 1.4 times the processor time with it, and some
of the API 3.4 times.

Processes that share the tests, and programs that tests fork, write down what they passed; the
process that started the run reads all of it and fails below the floor.
"""

import atexit
import io
import os
import shutil
import signal
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import slipcover

from tests.fork_server import COVERAGE

if TYPE_CHECKING:
    import pytest

FLOOR: Final = 95.5
"""Percent of lines and branches together."""
_ROOT: Final = Path(__file__).parent.parent
_SOURCES: Final = [str(_ROOT / name) for name in ("api", "core", "deploy", "worker")]
_OMITTED: Final = [str(_ROOT / "deploy/container/stack.py")]  # runs in containers alone
_EXCLUDED: Final = ["if __name__ == .__main__.:", "raise AssertionError"]
_WORKER: Final = "PYTEST_XDIST_WORKER"
"""Set in the processes that share the tests of a run."""

_ByFile = dict[str, tuple[list[int], list[tuple[int, int]]]]
"""Lines, and branches from a line to another."""


class _Written(msgspec.Struct):
    """What a process tells."""

    passed: _ByFile
    instrumented: _ByFile
    """All that there is in the files that it imported; nothing from programs."""


_probes: Final[Any] = slipcover.Slipcover(
    branch=True, source=_SOURCES, omit=_OMITTED, exclude_also=_EXCLUDED, d_miss_threshold=2000
)
if COVERAGE not in os.environ:  # this is the process that starts all others
    os.environ[COVERAGE] = tempfile.mkdtemp(prefix="k9-coverage-")
_result: Final[dict[str, Any]] = {}
slipcover.ImportManager(_probes, slipcover.FileMatcher(_SOURCES, _OMITTED)).__enter__()


def settle() -> None:
    """Before a process is forked many times: writes what it passed, and takes out those probes."""
    _probes.deinstrument_seen()
    _write(Path(os.environ[COVERAGE]))
    _probes.all_seen.clear()


def write_at_end(directory: Path) -> None:
    """Has this process write what it passed when it ends, by SIGTERM too."""

    def end(number: int, _frame: object) -> None:
        _write(directory)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)  # a program may have a handler of its own instead
    atexit.register(_write, directory)


def _write(directory: Path, *, instrumented: bool = False) -> None:
    passed: defaultdict[str, set[Any]] = defaultdict(set)
    for seen in (_probes.all_seen, _probes.newly_seen):
        for file, at in seen.copy().items():
            passed[file] |= at
    written = _Written({}, {})
    for file, at in passed.items():
        branches = {each for each in at if isinstance(each, tuple)}
        written.passed[file] = list(at - branches), list(branches)
    if instrumented:
        for file, lines in _probes.code_lines.items():
            written.instrumented[file] = list(lines), list(_probes.code_branches[file])
    part = directory / f"{os.getpid()}.part"
    part.write_bytes(msgspec.json.encode(written))
    part.rename(part.with_suffix(".json"))


def _read(directory: Path) -> None:
    for path in directory.glob("*.json"):
        written = msgspec.json.decode(path.read_bytes(), type=_Written)
        for file, (lines, branches) in written.passed.items():
            _probes.all_seen[file].update(lines, branches)
        for file, (lines, branches) in written.instrumented.items():
            _probes.code_lines[file].update(lines)
            _probes.code_branches[file].update(branches)


def pytest_sessionfinish(session: "pytest.Session") -> None:
    """Writes what this process passed, or reports on all."""
    directory = Path(os.environ[COVERAGE])
    if _WORKER in os.environ:
        _write(directory, instrumented=True)
        return
    _read(directory)
    shutil.rmtree(directory)
    _result.update(_probes.get_coverage())
    if _percent() < FLOOR and not session.exitstatus:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Tells what was not passed."""
    table = io.StringIO()
    slipcover.print_coverage(_result, outfile=table, skip_covered=True, missing_width=60)
    terminalreporter.write(table.getvalue())
    terminalreporter.write_line(
        f"{_percent():.1f} % of lines and branches were passed; at least {FLOOR} % have to be"
    )


def _percent() -> float:
    return float(_result["summary"]["percent_covered"])
