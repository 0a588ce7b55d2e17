"""`k9 import`."""

import asyncio
import sys
from pathlib import Path
from time import monotonic
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from core.models import Metric
from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError

BAD_ROWS_SHOWN = 50


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="The model version, such as minilm-l6-v2.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "ip", "l2"]),
    help="Fixed by a model version's first write; cosine where it is not given then.",
)
@click.option("--id-column", metavar="NAME", help="Of the ids, where it is not product_id.")
@click.option("--vector-column", metavar="NAME", help="Of the vectors, where it is not vector.")
def command(
    file: Path,
    model: str,
    metric: Metric | None,
    id_column: str | None,
    vector_column: str | None,
) -> None:
    """Stores the embeddings of FILE: Parquet, .npz or JSON.

    Parquet has the columns `product_id` and `vector`, .npz the arrays `product_ids` and `vectors`,
    a JSON line is {"product_id": "...", "vector": [...]}. What FILE is, its first bytes say; it may
    be gzip, and JSON may be UTF-16; `-` is standard input. Ids that are integers or UUIDs are
    stored as text. Running it again is safe. Rows that do not hold are named on standard error, and
    all others are stored.
    """
    settings, _ = environment.enter()
    asyncio.run(_import(settings, file, model, metric, (id_column, vector_column)))


async def _import(
    settings: Settings,
    file: Path,
    model: str,
    metric: Metric | None,
    names: tuple[str | None, str | None],
) -> None:
    # Late, so that `k9 import --help` and a wrong option answer at once.
    from core.resources import open_resources  # noqa: PLC0415
    from deploy.data.formats.readers import open_source  # noqa: PLC0415
    from deploy.data.formats.rows import Columns  # noqa: PLC0415
    from deploy.data.importing import Moved, import_file  # noqa: PLC0415

    console = Console(stderr=True)
    began = monotonic()
    stored = bad = 0
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows  {task.fields[rate]:,.0f} rows/s"),
        TimeRemainingColumn(),
    )
    with (
        open_source(file, Columns(*names), settings.files) as source,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        name = source.short_name
        bar = progress.add_task(f"importing {name}", total=source.units, rows=0, rate=0.0)

        def moved(step: Moved) -> None:
            nonlocal stored, bad
            stored += step.stored
            for row in step.bad:
                bad += 1
                if bad <= BAD_ROWS_SHOWN:
                    product = "" if row.product_id is None else f" ({row.product_id[:80]!r})"
                    sys.stderr.write(f"{name}:{row.number}{product}: {row.reason}\n")
            rate = (stored + bad) / max(monotonic() - began, 1e-3)
            progress.update(bar, advance=step.units, rows=stored + bad, rate=rate)

        environment.quiet_logs()
        async with open_resources(settings.patient()) as resources:
            try:
                await import_file(
                    resources.embedding_service,
                    model,
                    source,
                    rows_max=settings.limits.batch_rows_max,
                    metric=metric,
                    moved=moved,
                )
            except CommandError as error:
                raise CommandError(f"{error} (stored before that: {stored:,})") from error
        for note in source.notes:
            sys.stderr.write(f"{name}: {note}\n")
    if bad > BAD_ROWS_SHOWN:
        sys.stderr.write(f"… and {bad - BAD_ROWS_SHOWN:,} more\n")
    if not stored and not bad:
        raise CommandError(f"{source.name}: has no rows")
    seconds = monotonic() - began
    if bad:
        raise CommandError(f"{bad:,} rows do not hold; {stored:,} were stored")
    click.echo(f"{stored:,} embeddings of {model} stored in {seconds:.1f} s")
