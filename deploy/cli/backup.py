"""`k9 backup`."""

import asyncio
from pathlib import Path
from time import monotonic

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from core.settings import Settings
from deploy.cli import environment


@click.command("backup")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def command(directory: Path) -> None:
    """Writes every table of the environment to DIRECTORY, which must be empty or not there.

    The tables are read while they are in use: what was written before the backup began is in it,
    what is written meanwhile may be. Interrupted, it can be run again. It holds all data of all
    users: keep it accordingly.
    """
    settings, _ = environment.enter()
    asyncio.run(_backup(settings, directory))


async def _backup(settings: Settings, directory: Path) -> None:
    from core.dynamo.client import open_dynamo  # noqa: PLC0415 - `k9 backup --help` is at once
    from deploy.aws.tables import describe_tables  # noqa: PLC0415
    from deploy.data.backup import ORDER, back_up  # noqa: PLC0415

    began = monotonic()
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} items"),
        TimeElapsedColumn(),
    )
    described = {table.name: table for table in await describe_tables(settings)}
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        # DynamoDB's figures are up to six hours old: good enough for the length of a bar.
        bars = {
            table.name: progress.add_task(
                table.name, total=described[settings.table(table.name)].items or None
            )
            for table in ORDER
        }

        def told(table: str, items: int) -> None:
            progress.advance(bars[table], items)

        environment.quiet_logs()
        async with open_dynamo(settings.patient()) as dynamo:
            manifest = await back_up(dynamo, settings, directory, told)
    click.echo(
        f"{manifest.items:,} items of {len(manifest.tables)} tables, {manifest.bytes:,} bytes, "
        f"in {directory} after {monotonic() - began:.1f} s"
    )
