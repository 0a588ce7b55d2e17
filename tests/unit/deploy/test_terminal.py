"""The display of a build: a line per stage, with rates."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from deploy.cli.watch_build import _show
from deploy.terminal import _short, build_display


def state(
    status: str, stage: str = "queued", done: int = 0, total: int = 0, attempt: int = 1
) -> Any:
    """A build as the API answers it."""
    progress = {"stage": stage, "done": done, "total": total}
    return {"status": status, "progress": progress, "attempt": attempt, "error": None}


def shown(*states: Any) -> str:
    """What stands on the terminal after these states."""
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True, color_system=None)
    with build_display(console) as display:
        for each in states:
            _show(display, each)
    return " ".join(output.getvalue().split())


def test_each_stage_has_its_line() -> None:
    """Waiting, reading, uploading: rows in rows, bytes in bytes."""
    text = shown(
        state("queued"),
        state("running", "pull", 12_000),
        state("running", "upload", 1_500_000, 3_000_000),
        state("published"),
    )
    assert "waiting for a worker" in text
    assert re.search(r"reading rows \S+ 12\.0k", text)
    assert re.search(r"uploading \S+ 3\.0M/3\.0MB", text)


def test_another_attempt_says_why() -> None:
    """A worker that was lost begins the stages anew."""
    text = shown(state("running", "index", 1, 2), state("running", "pull", 5, attempt=2))
    assert "attempt 2: the worker was lost" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (950, "950"), (12_345, "12.3k"), (4e6, "4.0M"), (5e16, "50000.0T")],
)
def test_numbers_are_short(number: float, text: str) -> None:
    """Three or four digits and a unit."""
    assert _short(number) == text
