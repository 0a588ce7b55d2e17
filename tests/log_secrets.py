"""All that the suite logs is searched for every secret that it knows; one that is found fails it.

Python processes that tests start write what they log to files as well: `tests/captured/` is on
their path, and its `sitecustomize` copies standard error (of the API and the worker, standard
output too), and notes which secrets are among their settings. What the application logs inside of
pytest is in the reports of the tests. Tokens are known by their form.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.captured.secrets_of_settings import DIRECTORY, secrets_in
from tests.emulators import CURSOR_KEY

_PATH: Final = Path(__file__).parent / "captured"
_TOKEN: Final = re.compile(r"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")
_SHOWN_MAX: Final = 20
_BEFORE: Final = 80
"""Characters that are shown of what stands before a secret."""
_WORKER: Final = "PYTEST_XDIST_WORKER"
"""Set in the processes that share the tests of a run; the one that started them searches."""
_SECTIONS: Final = ("Captured stdout", "Captured stderr", "Captured log")

_texts: dict[tuple[str, str], None] = {}
"""Where, and what was logged there inside of pytest; each phase of a test reports all before it."""
_found: list[str] = []


def begin() -> None:
    """Has every process that is started from now on write copies, one directory a run."""
    if _WORKER in os.environ:
        return
    os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="k9-test-logs-")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_PATH), before)))


def leaks(where: str, text: str, secrets: Iterable[str]) -> Iterator[str]:
    """A line for each kind of secret in a text; it does not show the secret."""
    if token := _TOKEN.search(text):
        yield f"{where}: a token, after {_before(text, token.start())!r}"
    for secret in secrets:
        at = text.find(secret)
        if at >= 0:
            yield f"{where}: a secret of settings, after {_before(text, at)!r}"


def _before(text: str, at: int) -> str:
    return text[max(0, at - _BEFORE) : at].rpartition("\n")[2]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps what a test logged."""
    for name, text in report.sections:
        if text and name.startswith(_SECTIONS):
            _texts[f"{report.nodeid} ({name.removeprefix('Captured ')})", text] = None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Searches all of it."""
    name = None if _WORKER in os.environ else os.environ.pop(DIRECTORY, None)
    if name is None:  # also of a second session in one process, as when code is mutated
        return
    directory = Path(name)
    secrets = {CURSOR_KEY, *secrets_in(os.environ)}
    for path in directory.glob("*.secrets"):
        secrets |= set(path.read_text(encoding="utf-8").splitlines())
    for path in sorted(directory.glob("*.log")):
        text = path.read_text(encoding="utf-8", errors="replace")
        _found.extend(leaks(path.stem, text, secrets))
    for where, text in _texts:
        _found.extend(leaks(where, text, secrets))
    shutil.rmtree(directory, ignore_errors=True)
    if _found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says where a secret was found."""
    if _found:
        terminalreporter.section("secrets in logs", red=True)
        for line in _found[:_SHOWN_MAX]:
            terminalreporter.line(line)
