"""`k9 restore`."""

import asyncio
import shlex
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError
from deploy.local.files import RunningStack

if TYPE_CHECKING:  # it brings the clients along
    from deploy.data.request_builds import Requested


_NEEDED = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@click.command("restore")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option(
    "--force", is_flag=True, help="Replaces tables that are not empty, with all that is in them."
)
@click.option("--to-time", metavar="T", help="Point-in-time recovery: RFC 3339, with an offset.")
@click.option(
    "--into",
    metavar="ENVIRONMENT",
    help="With --to-time: the new environment; by default the present one's name and the time.",
)
def command(directory: Path | None, to_time: str | None, into: str | None, *, force: bool) -> None:
    """Brings all tables back: from the files of a backup in DIRECTORY, or as of a time.

    From files: every checksum is verified before anything is written. Stop what writes to the
    tables first. Afterwards no earlier index is served, and a build of each model version is
    requested. Interrupted, the same command goes on.

    As of a time (--to-time): DynamoDB restores into new tables, so they become those of a new
    environment, and what is there now stays untouched; how to go on is printed.
    """
    if (directory is None) == (to_time is None):
        raise click.UsageError("takes either DIRECTORY or --to-time T")
    if directory is None and force:
        raise click.UsageError("--force is for a restore from files")
    if directory is not None and into is not None:
        raise click.UsageError("--into is for --to-time; K9_ENVIRONMENT says where files go")
    settings, stack = environment.enter()
    if directory is not None:
        asyncio.run(_restore(settings, directory, force=force))
    else:
        asyncio.run(_recover(settings, stack, to_time or "", into))


async def _restore(settings: Settings, directory: Path, *, force: bool) -> None:
    from core.resources import open_resources  # noqa: PLC0415 - `k9 restore --help` is at once
    from deploy.data.restore import restore  # noqa: PLC0415

    began = monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Elapsed())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def told(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total or None)
            progress.update(bars[step], completed=done)

        environment.quiet_logs()
        async with open_resources(settings.patient()) as resources:
            restored = await restore(
                resources,
                directory,
                force=force,
                told=told,
                say=lambda line: click.echo(line, err=True),
            )
    manifest = restored.manifest
    replaced = f", in place of {restored.emptied:,}" if restored.emptied else ""
    click.echo(
        f"{manifest.items:,} items of {manifest.environment} as of {manifest.ended_at} restored "
        f"into {settings.environment}{replaced}, after {monotonic() - began:.1f} s"
    )
    _say_builds(restored.requested)


async def _recover(
    settings: Settings, stack: RunningStack | None, to_time: str, into: str | None
) -> None:
    # Late, so that `k9 restore --help` is at once.
    from deploy.data.pitr import environment_for, parse_time, recover  # noqa: PLC0415

    moment = parse_time(to_time)
    name = environment_for(settings, moment, into)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), Elapsed())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def told(table: str, status: str) -> None:
            if table not in bars:
                bars[table] = progress.add_task(table, total=None)
            if status == "restored":
                progress.update(bars[table], total=1, completed=1)

        environment.quiet_logs()
        recovered = await recover(
            settings.patient(),
            moment,
            name,
            told=told,
            report=lambda line: click.echo(line, err=True),
        )
    before = "was restored before" if recovered.already else "restored"
    click.echo(f"{settings.environment} as of {to_time} {before}, as environment {name}")
    if stack is not None:
        click.echo("(the embedded DynamoDB keeps no history: these are the rows of now)")
    for line in _directions(settings, stack, name):
        click.echo(line)
    _say_builds(recovered.requested)


def _directions(settings: Settings, stack: RunningStack | None, name: str) -> Iterator[str]:
    """How to go on with a restored environment."""
    here = settings.environment
    bucket = settings.aws.bucket or f"k9-indexes-{here}-ACCOUNT"
    # An address of its own keeps a command off the stack's settings, the environment among them.
    words = (
        {name: value for name, value in stack.environ.items() if name in _NEEDED} if stack else {}
    )
    reach = "".join(f"{name}={shlex.quote(value)} " for name, value in words.items())
    yield "to serve it, start API and worker with"
    yield f"    {reach}K9_ENVIRONMENT={name} K9_BUCKET={bucket}"
    yield f"or copy it back over {here}, once nothing writes there:"
    yield f"    {reach}K9_ENVIRONMENT={name} k9 backup {name}"
    yield f"    {reach}K9_ENVIRONMENT={here} k9 restore {name} --force"
    yield f"{here} is untouched until then; the tables of {name} stay until you delete them"


def _say_builds(requested: list["Requested"]) -> None:
    """Says what builds were requested.

    Raises:
        CommandError: one could not be; the data is all there.
    """
    for entry in requested:
        if entry.outcome == "requested":
            click.echo(f"build of {entry.model_version} requested: {entry.detail}")
        elif entry.outcome == "empty":
            click.echo(f"no build of {entry.model_version}: {entry.detail}")
    failed = [entry for entry in requested if entry.outcome == "failed"]
    if failed:
        raise CommandError(
            "the data is restored, but no build was requested of "
            + "; ".join(f"{entry.model_version}: {entry.detail}" for entry in failed)
            + " (`k9 build MODEL` requests it)"
        )
