"""`k9 backup`."""

from pathlib import Path
from time import monotonic

import click

from deploy.cli import environment


@click.command("backup")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@environment.async_command
async def command(directory: Path) -> None:
    """Writes every table of the environment to DIRECTORY, which must be empty or not exist.

    The tables may be in use: what was written before the backup began is in it, what is written
    meanwhile may be. If it is interrupted, run it again. A backup has all data of all users:
    protect it accordingly.
    """
    # Imported here, so that `k9 backup --help` answers at once.
    from deploy.aws.tables import describe_tables  # noqa: PLC0415
    from deploy.data.backup import back_up  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    began = monotonic()
    settings, _ = environment.enter()
    # DynamoDB's figures are up to six hours old: good enough for the length of a bar.
    totals = {table.name: table.items for table in await describe_tables(settings)}
    async with environment.open_resources(settings) as resources:
        with progress_display() as display:

            def show(table: str, completed: int, _total: int | None = None, /) -> None:
                display.update(table, completed, totals[settings.table(table)] or None)

            manifest = await back_up(resources.dynamo, settings, directory, show)
    click.echo(
        f"{manifest.items:,} items of {len(manifest.tables)} tables, {manifest.bytes:,} bytes, "
        f"in {directory} after {monotonic() - began:.1f} s"
    )
