"""A build on the terminal while it runs: a line a stage, with rate and time left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

_WORDS = {
    "queued": "waiting for a worker",
    "pull": "reading rows",
    "validate": "checking vectors",
    "index": "building the index",
    "recall": "measuring recall",
    "matrix": "similarity matrix",
    "files": "writing files",
    "compare": "comparing versions",
    "upload": "uploading",
    "publish": "publishing",
}
_BYTES = {"upload"}
"""Stages that count bytes; the others count rows, or steps."""
_UNITS = ("", "k", "M", "G", "T")
_STEP = 1000


class _Amount(ProgressColumn):
    """`12.3k/100k`, and how many a second."""

    def render(self, task: Task) -> Text:
        if (task.total or task.completed) <= 1:  # done or not: there is nothing to count
            return Text()
        unit = "B" if task.fields.get("bytes") else ""
        total = "" if task.total is None else f"/{_short(task.total)}{unit}"
        speed = task.finished_speed or task.speed
        rate = "" if not speed else f"  {_short(speed)}{unit}/s"
        return Text(f"{_short(task.completed)}{total}{rate}", style="progress.data.speed")


class BuildDisplay:
    """Shows the states of one build as they come."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage: str | None = None
        self._attempt = 0
        self._line: TaskID | None = None

    def show(self, build: dict[str, Any]) -> None:
        """Takes a state, as the API answers it."""
        step = build.get("progress") or {}
        stage = str(step.get("stage")) if build["status"] == "running" else "queued"
        if build["status"] not in {"queued", "running"}:
            self._finish()
            return
        attempt = int(build.get("attempt") or 0)
        if attempt > 1 and attempt != self._attempt:
            self._finish()
            why = build.get("error") or "its worker was lost"
            self._progress.console.print(f"attempt {attempt}: {why}", markup=False)
            self._stage = None
        self._attempt = attempt
        if stage != self._stage:
            self._finish()
            self._stage = stage
            self._line = self._progress.add_task(
                _WORDS.get(stage, stage), total=None, bytes=stage in _BYTES
            )
        if self._line is not None:
            done, total = step.get("done", 0), step.get("total") or None
            self._progress.update(self._line, completed=done, total=total)

    def _finish(self) -> None:
        """The stage is over, however little of it was seen."""
        if self._line is None:
            return
        task = self._progress.tasks[self._progress.task_ids.index(self._line)]
        end = task.total or task.completed or 1
        self._progress.update(self._line, completed=end, total=end)
        self._progress.stop_task(self._line)
        self._line = None


@contextmanager
def build_display() -> Iterator[BuildDisplay]:
    """A display on standard error until the end of the block; none where that is no terminal."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        _Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False, compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield BuildDisplay(progress)


def _short(number: float) -> str:
    """`950`, `12.3k`, `4.0M`."""
    for unit in _UNITS:
        if number < _STEP or unit == _UNITS[-1]:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= _STEP
    raise AssertionError("unreachable")
