"""Terminal output: consoles, progress bars, and answers of the API as tables."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.filesize import pick_unit_and_suffix
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
from rich.table import Table
from rich.text import Text

_FILE_WIDTH = 200
_STAGES = {
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
_PREFIXES = ["", "k", "M", "G", "T"]


def standard_output() -> Console:
    """A console on standard output. In a file or pipe it does not wrap cells at 80 characters."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


# --- progress -------------------------------------------------------------------------------------


class ProgressDisplay:
    """Progress bars, one per task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def update(
        self, task: str, completed: int, total: int | None = None, /, unit: str = "", note: str = ""
    ) -> None:
        """Shows how much of a task is done: a `ProgressCallback`.

        The first update adds the task's bar. `unit` is that of both numbers, `B` for bytes; `note`
        is shown behind them.
        """
        if task not in self._bars:
            self._bars[task] = self._progress.add_task(task, total=None)
        self._progress.update(
            self._bars[task], completed=completed, total=total, unit=unit, note=note
        )

    def finish(self, task: str) -> None:
        """Completes a task's bar. A later update of the same task adds a new one."""
        bar = self._bars.pop(task, None)
        if bar is None:
            return
        state = self._progress.tasks[self._progress.task_ids.index(bar)]
        end = state.total or state.completed or 1
        self._progress.update(bar, completed=end, total=end)
        self._progress.stop_task(bar)

    def print(self, line: str) -> None:
        """Prints a line above the bars."""
        self._progress.console.print(line, markup=False)


class _AmountColumn(ProgressColumn):
    """`12.3k/100k`, the rate per second, and the note."""

    def render(self, task: Task) -> Text:
        note = task.fields.get("note", "")
        if (task.total or task.completed) <= 1:  # done or not: there is nothing to count
            return Text(note)
        unit = task.fields.get("unit", "")
        total = "" if task.total is None else f"/{_short(task.total)}{unit}"
        speed = task.finished_speed or task.speed
        rate = "" if not speed else f"  {_short(speed)}{unit}/s"
        amount = f"{_short(task.completed)}{total}{rate}  {note}".rstrip()
        return Text(amount, style="progress.data.speed")


def _short(number: float) -> str:
    """`950`, `12.3k`, `4.0M`."""
    unit, prefix = pick_unit_and_suffix(int(number), _PREFIXES, 1000)
    return f"{number / unit:.1f}{prefix}" if prefix else f"{number:.0f}"


@contextmanager
def progress_display(console: Console | None = None) -> Iterator[ProgressDisplay]:
    """Progress bars on the console, by default standard error; none if it is not a terminal."""
    console = console or Console(stderr=True)
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        _AmountColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False, compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield ProgressDisplay(progress)


class BuildDisplay:
    """Shows the states of one build as they come: a bar per stage."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display
        self._label = ""
        self._attempt = 0

    def show(
        self,
        status: str,
        stage: str,
        completed: int,
        total: int,
        *,
        attempt: int = 0,
        error: str | None = None,
    ) -> None:
        """Shows a state of the build.

        `completed` and `total` are of the stage; `total` is 0 where it is unknown. After the first
        attempt, `error` is why the one before failed.
        """
        if status not in {"queued", "running"}:
            self._display.finish(self._label)
            return
        if attempt > 1 and attempt != self._attempt:
            self._display.finish(self._label)
            self._display.print(f"attempt {attempt}: {error or 'the worker was lost'}")
        self._attempt = attempt
        stage = stage if status == "running" else "queued"
        label = _STAGES.get(stage, stage)
        if label != self._label:
            self._display.finish(self._label)
        self._label = label
        unit = "B" if stage == "upload" else ""  # the other stages count rows, or steps
        self._display.update(label, completed, total or None, unit=unit)


@contextmanager
def build_display(console: Console | None = None) -> Iterator[BuildDisplay]:
    """The display of one build until the end of the block."""
    with progress_display(console) as display:
        yield BuildDisplay(display)


# --- answers --------------------------------------------------------------------------------------


def neighbor_table(answer: dict[str, Any]) -> Table:
    """Neighbours as a table. Ids are shown as they are: they may look like markup."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("product_id", overflow="fold", min_width=24)
    table.add_column("score", justify="right")
    for entry in answer["neighbors"]:
        table.add_row(Text(str(entry["product_id"])), f"{entry['score']:.4f}")
    return table


def index_line(index: dict[str, Any]) -> str:
    """Describes the index that an answer came from, in one line."""
    recall = index.get("recall")
    quality = "" if recall is None else f", recall {recall:.3f}"
    fresh = index.get("fresh")
    changes = "" if fresh is None else f", {fresh} rows changed since"
    return f"index {index.get('build_id')}, built {index.get('built_at')}{quality}{changes}"
