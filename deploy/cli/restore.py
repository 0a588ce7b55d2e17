"""`k9 restore`."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError
from deploy.local.files import RunningStack

if TYPE_CHECKING:  # it imports the clients
    from deploy.data.builds import BuildRequest

_CONNECTION = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@click.command("restore")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), required=False)
@click.option(
    "--force", is_flag=True, help="Replaces tables that are not empty, with everything in them."
)
@click.option("--to-time", metavar="T", help="Point-in-time recovery: RFC 3339, with an offset.")
@click.option(
    "--into",
    metavar="ENVIRONMENT",
    help="With --to-time: the new environment; by default the current one's name and the time.",
)
@environment.async_command
async def command(
    directory: Path | None, to_time: str | None, into: str | None, *, force: bool
) -> None:
    """Restores all tables: from the files of a backup in DIRECTORY, or as of a time.

    From files: every checksum is verified before anything is written. Stop what writes to the
    tables first. Afterwards no earlier index is served, and a build of each model version is
    requested. If it is interrupted, the same command continues.

    As of a time (--to-time): DynamoDB restores into new tables, which become those of a new
    environment. The current tables are not changed; the next steps are printed.
    """
    if (directory is None) == (to_time is None):
        raise click.UsageError("takes either DIRECTORY or --to-time T")
    if directory is None and force:
        raise click.UsageError("--force is for a restore from files")
    if directory is not None and into is not None:
        raise click.UsageError("--into is for --to-time; files go into K9_ENVIRONMENT")
    settings, stack = environment.enter()
    if directory is not None:
        await _restore_files(settings, directory, force=force)
    else:
        await _restore_to_time(settings, stack, to_time or "", into)


async def _restore_files(settings: Settings, directory: Path, *, force: bool) -> None:
    # Imported here, so that `k9 restore --help` answers at once.
    from deploy.data.restore import restore  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    began = monotonic()
    async with environment.open_resources(settings) as resources:
        with progress_display() as display:
            restored = await restore(
                resources,
                directory,
                force=force,
                progress=display.update,
                message=lambda line: click.echo(line, err=True),
            )
    manifest = restored.manifest
    replaced = f", in place of {restored.emptied:,}" if restored.emptied else ""
    click.echo(
        f"{manifest.items:,} items of {manifest.environment} as of {manifest.ended_at} restored "
        f"into {settings.environment}{replaced}, after {monotonic() - began:.1f} s"
    )
    _print_builds(restored.builds)


async def _restore_to_time(
    settings: Settings, stack: RunningStack | None, to_time: str, into: str | None
) -> None:
    from deploy.data.pitr import environment_name, parse_time, restore_to_time  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    moment = parse_time(to_time)
    name = environment_name(settings, moment, into)
    environment.quiet_logs()
    with progress_display() as display:
        restored = await restore_to_time(
            settings.patient(),
            moment,
            name,
            progress=display.update,
            message=lambda line: click.echo(line, err=True),
        )
    done = "was restored before" if restored.already else "restored"
    click.echo(f"{settings.environment} as of {to_time} {done}, as environment {name}")
    if stack is not None:
        click.echo("(the embedded DynamoDB keeps no history: these are the current rows)")
    for line in _next_steps(settings, stack, name):
        click.echo(line)
    _print_builds(restored.builds)


def _next_steps(settings: Settings, stack: RunningStack | None, name: str) -> Iterator[str]:
    """How to continue with a restored environment."""
    current = settings.environment
    bucket = settings.aws.bucket or f"k9-indexes-{current}-ACCOUNT"
    # With an explicit address a command ignores the stack's settings, its environment among them.
    environ = stack.environ if stack else {}
    prefix = "".join(
        f"{key}={shlex.quote(value)} " for key, value in environ.items() if key in _CONNECTION
    )
    yield "to serve it, start API and worker with"
    yield f"    {prefix}K9_ENVIRONMENT={name} K9_BUCKET={bucket}"
    yield f"or copy it back over {current}, once nothing writes there:"
    yield f"    {prefix}K9_ENVIRONMENT={name} k9 backup {name}"
    yield f"    {prefix}K9_ENVIRONMENT={current} k9 restore {name} --force"
    yield f"{current} is not changed until then; the tables of {name} stay until you delete them"


def _print_builds(builds: list["BuildRequest"]) -> None:
    """Prints which builds were requested.

    Raises:
        CommandError: one could not be; all data is restored.
    """
    for build in builds:
        if build.outcome == "requested":
            click.echo(f"build of {build.model_version} requested: {build.detail}")
        elif build.outcome == "empty":
            click.echo(f"no build of {build.model_version}: {build.detail}")
    failed = [f"{b.model_version}: {b.detail}" for b in builds if b.outcome == "failed"]
    if failed:
        raise CommandError(
            f"the data is restored, but no build was requested of {'; '.join(failed)} "
            "(`k9 build MODEL` requests it)"
        )
