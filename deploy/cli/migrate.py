"""`k9 migrate`."""

import asyncio
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from core.models import Metric
from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError

if TYPE_CHECKING:  # it brings numpy and the clients along
    from deploy.data.migration.migrate import Told

BAD_SHOWN = 50
_REASON_SHOWN = 300


@click.command("migrate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--table",
    type=click.Choice(["users", "reports", "embeddings"]),
    required=True,
    help="Which table's rows FILE has.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write all that is bad or left out, as JSON lines.",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "ip", "l2"]),
    help="Of model versions that are new; cosine where it is not given.",
)
def command(
    file: Path,
    table: Literal["users", "reports", "embeddings"],
    report: Path | None,
    metric: Metric | None,
) -> None:
    """Stores existing data: JSON rows as arrays, lines or documents, or in a form of DynamoDB's.

    Those are what scan, query, get-item and batch-write-item take or print, and exports to S3. The
    file may be UTF-16, or gzip; `-` is standard input.

    Vectors that are lists of numbers become binary. Bad rows are named on standard error, and all
    others are stored. A row that is there already, as new or newer, is left as it is: running it
    again is safe, and goes on where an earlier run ended.
    """
    if metric and table != "embeddings":
        raise click.UsageError("--metric is for --table embeddings")
    settings, _ = environment.enter()
    asyncio.run(_migrate(settings, file, table, report, metric))


class _Teller:
    """Says what is bad: the first on standard error, all of it in the report."""

    def __init__(self, name: str, report: BinaryIO | None) -> None:
        self._name = name
        self._report = report
        self.done = 0
        self.bad = 0
        self.deletions = 0
        self.left_out: Counter[str] = Counter()

    def tell(self, told: "Told") -> None:
        self.done += 1
        self.left_out.update(told.left_out)
        if told.outcome == "bad":
            self.bad += 1
            if self.bad <= BAD_SHOWN:
                sys.stderr.write(f"{self._name}:{told.line}{_name(told)}: {_reason(told)}\n")
        if told.outcome == "deletions":
            self.deletions += 1
        if self._report is not None and (told.outcome in {"bad", "deletions"} or told.left_out):
            line = {name: value for name, value in msgspec.to_builtins(told).items() if value}
            self._report.write(msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        if self.bad > BAD_SHOWN:
            sys.stderr.write(f"… and {self.bad - BAD_SHOWN:,} more\n")
        if self.deletions:
            sys.stderr.write(
                f"left out: {self.deletions:,} deletions, which migrate does not carry out "
                "(--report names them)\n"
            )
        for name, rows in sorted(self.left_out.items()):
            sys.stderr.write(f"left out: {name[:80]!r} of {rows:,} rows, which K9 does not keep\n")


def _name(told: "Told") -> str:
    shown = "" if told.id is None else f", {told.id[:80]!r}"
    return f" (entry {told.entry:,}{shown})"


def _reason(told: "Told") -> str:
    return " ".join((told.reason or "").split())[:_REASON_SHOWN]


async def _migrate(
    settings: Settings,
    file: Path,
    table: Literal["users", "reports", "embeddings"],
    report: Path | None,
    metric: Metric | None,
) -> None:
    # Late, so that `k9 migrate --help` and a wrong option answer at once.
    from core.resources import open_resources  # noqa: PLC0415
    from deploy.data.formats.file_input import open_input  # noqa: PLC0415
    from deploy.data.migration.migrate import migrate_file, words  # noqa: PLC0415

    console = Console(stderr=True)
    began = monotonic()
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeRemainingColumn(),
    )
    with ExitStack() as stack:
        source = stack.enter_context(open_input(file, settings.files))
        teller = _Teller(source.short_name, _opened(stack, file, report))
        stack.callback(teller.close)
        progress = stack.enter_context(
            Progress(*columns, console=console, disable=not console.is_terminal)
        )
        bar = progress.add_task(f"migrating {source.short_name}", total=source.size, rows=0)
        environment.quiet_logs()
        async with open_resources(settings.patient()) as resources:
            done = await migrate_file(
                resources,
                source,
                table,
                metric=metric,
                told=teller.tell,
                read=lambda to: progress.update(bar, completed=to, rows=teller.done),
            )
        progress.update(bar, completed=source.position, rows=teller.done)
    if done.bad:
        raise CommandError(f"{table}: {words(done)}")
    click.echo(f"{table}: {words(done)}, in {monotonic() - began:.1f} s")
    if table == "embeddings" and done.stored:
        click.echo("`k9 build MODEL` makes the index anew")


def _opened(stack: ExitStack, file: Path, report: Path | None) -> BinaryIO | None:
    if report is None:
        return None
    try:
        if report.exists() and file.exists() and report.samefile(file):
            raise CommandError(f"{report}: is the file to migrate")
        return stack.enter_context(report.open("wb"))
    except OSError as error:
        raise CommandError(f"{report}: {error.strerror}") from error
