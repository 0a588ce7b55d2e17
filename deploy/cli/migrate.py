"""`k9 migrate`."""

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, BinaryIO, Literal

import click
import msgspec

from core.models import Metric
from deploy.cli import environment
from deploy.errors import CommandError

if TYPE_CHECKING:  # it imports numpy and the clients
    from deploy.data.migration.migrate import EntryResult

BAD_SHOWN = 50
_REASON_SHOWN = 300


@click.command("migrate")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--table",
    type=click.Choice(["users", "reports", "embeddings"]),
    required=True,
    help="The table whose rows FILE has.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file for everything that is not valid or left out, as JSON lines.",
)
@click.option(
    "--metric",
    type=click.Choice(["cosine", "ip", "l2"]),
    help="Of model versions that are new; cosine by default.",
)
@environment.async_command
async def command(
    file: Path,
    table: Literal["users", "reports", "embeddings"],
    report: Path | None,
    metric: Metric | None,
) -> None:
    """Stores existing data: JSON rows as arrays, lines or documents, or in DynamoDB's JSON.

    DynamoDB's JSON is what scan, query, get-item and batch-write-item take or print, and exports
    to S3. The file may be UTF-16, or gzip; `-` is standard input.

    Vectors that are lists of numbers become binary. Rows that are not valid are reported on
    standard error, and all others are stored. An existing row that is as new or newer is left as it
    is: running the command again is safe, and continues where an earlier run ended.
    """
    if metric and table != "embeddings":
        raise click.UsageError("--metric is for --table embeddings")
    # Imported here, so that `k9 migrate --help` and a wrong option answer at once.
    from core.embedding_files.file_input import open_input  # noqa: PLC0415
    from deploy.data.migration.migrate import migrate_file  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    settings, _ = environment.enter()
    began = monotonic()
    with ExitStack() as stack:
        source = stack.enter_context(open_input(file, settings.files))
        reporter = _Reporter(source.short_name, _open_report(stack, file, report))
        stack.callback(reporter.close)
        display = stack.enter_context(progress_display())

        def show(position: int) -> None:
            name, note = f"migrating {source.short_name}", f"{reporter.entries:,} rows"
            display.update(name, position, source.size, unit="B", note=note)

        async with environment.open_resources(settings) as resources:
            migrated = await migrate_file(
                resources, source, table, metric=metric, on_entry=reporter.add, on_position=show
            )
        show(source.position)
    if migrated.bad:
        raise CommandError(f"{table}: {migrated}")
    click.echo(f"{table}: {migrated}, in {monotonic() - began:.1f} s")
    if table == "embeddings" and migrated.stored:
        click.echo("`k9 build MODEL` rebuilds the index")


class _Reporter:
    """Reports what is not stored: the first bad rows on standard error, everything in the file."""

    def __init__(self, name: str, report: BinaryIO | None) -> None:
        self._name = name
        self._report = report
        self.entries = 0
        self._bad = 0
        self._deletions = 0
        self._left_out: Counter[str] = Counter()

    def add(self, result: "EntryResult") -> None:
        self.entries += 1
        self._left_out.update(result.left_out)
        if result.outcome == "bad":
            self._bad += 1
            if self._bad <= BAD_SHOWN:
                row_id = "" if result.id is None else f", {result.id[:80]!r}"
                reason = " ".join((result.reason or "").split())[:_REASON_SHOWN]
                where = f"{self._name}:{result.line} (entry {result.entry:,}{row_id})"
                sys.stderr.write(f"{where}: {reason}\n")
        self._deletions += result.outcome == "deletions"
        if self._report and (result.outcome in {"bad", "deletions"} or result.left_out):
            fields = {name: value for name, value in msgspec.to_builtins(result).items() if value}
            self._report.write(msgspec.json.encode(fields) + b"\n")

    def close(self) -> None:
        if self._bad > BAD_SHOWN:
            sys.stderr.write(f"… and {self._bad - BAD_SHOWN:,} more\n")
        if self._deletions:
            sys.stderr.write(
                f"left out: {self._deletions:,} deletions, which migrate does not carry out "
                "(--report lists them)\n"
            )
        for name, rows in sorted(self._left_out.items()):
            sys.stderr.write(f"left out: {name[:80]!r} of {rows:,} rows, which K9 does not store\n")


def _open_report(stack: ExitStack, file: Path, report: Path | None) -> BinaryIO | None:
    if report is None:
        return None
    try:
        if report.exists() and file.exists() and report.samefile(file):
            raise CommandError(f"{report}: is the file to migrate")
        return stack.enter_context(report.open("wb"))
    except OSError as error:
        raise CommandError(f"{report}: {error.strerror}") from error
