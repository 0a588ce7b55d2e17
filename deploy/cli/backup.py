"""`k9 backup`."""

from time import monotonic

import click

from deploy.cli import environment


@click.command("backup")
@click.argument("place", metavar="DIRECTORY or s3://BUCKET/PREFIX")
@environment.async_command
async def command(place: str) -> None:
    """Writes every table of the environment to a directory, or to a bucket.

    DIRECTORY must be empty or not exist; if the backup is interrupted, run it again. Below
    s3://BUCKET/PREFIX each backup gets a new name, which is printed, so the command can run on a
    schedule; a backup counts only once its manifest is there, and a lifecycle rule of the bucket
    decides how long backups stay. Neither is limited by memory.

    The tables may be in use: what was written before the backup began is in it, what is written
    meanwhile may be. A backup has all data of all users: protect it accordingly.
    """
    # Imported here, so that `k9 backup --help` answers at once.
    from deploy.aws.tables import describe_tables  # noqa: PLC0415
    from deploy.data.backup import back_up  # noqa: PLC0415
    from deploy.data.places import parse_place  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    began = monotonic()
    target = parse_place(place)
    settings, _ = environment.enter()
    # DynamoDB's figures are up to six hours old: good enough for the length of a bar.
    totals = {table.name: table.items for table in await describe_tables(settings)}
    async with environment.open_resources(settings) as resources:
        with progress_display() as display:

            def show(table: str, completed: int, _total: int | None = None, /) -> None:
                display.update(table, completed, totals[settings.table(table)] or None)

            made = await back_up(resources.dynamo, resources.settings, target, show)
    manifest = made.manifest
    click.echo(
        f"{manifest.items:,} items of {len(manifest.tables)} tables, {manifest.bytes:,} bytes, "
        f"in {made.place} after {monotonic() - began:.1f} s"
    )
