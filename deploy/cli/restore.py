"""`k9 restore`."""

from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

import click

from core.settings import Settings
from deploy.cli import environment
from deploy.errors import CommandError
from deploy.local.files import RunningStack

if TYPE_CHECKING:  # it imports the clients
    from deploy.data.builds import BuildRequest


@click.command("restore")
@click.argument("place", metavar="DIRECTORY or s3://BUCKET/PREFIX/NAME", required=False)
@click.option(
    "--force", is_flag=True, help="Replaces tables that are not empty, with everything in them."
)
@click.option("--to-time", metavar="T", help="Point-in-time recovery: RFC 3339, with an offset.")
@click.option(
    "--into",
    metavar="ENVIRONMENT",
    help="With --to-time: the new environment; by default the current one's name and the time.",
)
@click.option(
    "--copy-back",
    is_flag=True,
    help="With --to-time: then makes the current tables equal to the restored ones.",
)
@click.option(
    "--writes-stopped",
    is_flag=True,
    help="With --copy-back: you have stopped the API and the workers; DynamoDB is not asked to.",
)
@environment.async_command
async def command(
    place: str | None,
    to_time: str | None,
    into: str | None,
    *,
    force: bool,
    copy_back: bool,
    writes_stopped: bool,
) -> None:
    """Restores all tables: from a backup's files, or as of a time.

    From a directory, or from s3://BUCKET/PREFIX/NAME as `k9 backup` printed it: every checksum is
    verified before anything is written. Stop what writes to the tables first. Afterwards no earlier
    index is served, and a build of each model version is requested. If it is interrupted, the same
    command continues.

    As of a time (--to-time): DynamoDB restores into new tables, which become those of a new
    environment. The current tables are not changed; the next steps are printed.

    With --copy-back it goes on: DynamoDB denies everyone else's writes, rows that differ are copied
    back and rows of later are deleted, both are verified, model versions get a new epoch, a build
    of each is requested, and writes are allowed again. If it is interrupted, the same command
    continues, and until then writes stay denied.
    """
    if (place is None) == (to_time is None):
        raise click.UsageError("takes either DIRECTORY (or s3://…) or --to-time T")
    if place is None and force:
        raise click.UsageError("--force is for a restore from files")
    if place is not None and (into is not None or copy_back):
        option = "--into" if into is not None else "--copy-back"
        raise click.UsageError(f"{option} is for --to-time; files go into K9_ENVIRONMENT")
    if writes_stopped and not copy_back:
        raise click.UsageError("--writes-stopped is for --copy-back")
    settings, stack = environment.enter()
    if place is not None:
        await _restore_files(settings, place, force=force)
    elif copy_back:
        await _restore_in_place(settings, stack, to_time or "", into, stopped=writes_stopped)
    else:
        name, builds = await _restore_tables(settings, stack, to_time or "", into, served=True)
        for line in _next_steps(settings, stack, name, to_time or ""):
            click.echo(line)
        _print_builds(builds)


async def _restore_files(settings: Settings, place: str, *, force: bool) -> None:
    # Imported here, so that `k9 restore --help` answers at once.
    from deploy.data.places import parse_place  # noqa: PLC0415
    from deploy.data.restore import restore  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    began = monotonic()
    source = parse_place(place)
    async with environment.open_resources(settings) as resources:
        with progress_display() as display:
            restored = await restore(
                resources, source, force=force, progress=display.update, message=environment.say
            )
    manifest = restored.manifest
    replaced = f", in place of {restored.emptied:,}" if restored.emptied else ""
    click.echo(
        f"{manifest.items:,} items of {manifest.environment} as of {manifest.ended_at} restored "
        f"into {settings.environment}{replaced}, after {monotonic() - began:.1f} s"
    )
    _print_builds(restored.builds)


async def _restore_tables(
    settings: Settings, stack: RunningStack | None, to_time: str, into: str | None, *, served: bool
) -> tuple[str, list["BuildRequest"]]:
    from deploy.data.pitr import environment_name, parse_time, restore_to_time  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    moment = parse_time(to_time)
    name = environment_name(settings, moment, into)
    environment.quiet_logs()
    with progress_display() as display:
        builds = await restore_to_time(
            settings.patient(),
            moment,
            name,
            served=served,
            progress=display.update,
            message=environment.say,
        )
    done = "was restored before" if builds is None else "restored"
    click.echo(f"{settings.environment} as of {to_time} {done}, as environment {name}")
    if stack is not None and builds is not None:
        click.echo("(the embedded DynamoDB keeps no history: these are the current rows)")
    return name, builds or []


async def _restore_in_place(
    settings: Settings, stack: RunningStack | None, to_time: str, into: str | None, *, stopped: bool
) -> None:
    from deploy.aws.write_stop import allow_writes, stop_writes  # noqa: PLC0415
    from deploy.data.copying import end_copy, is_kept, keep_copy  # noqa: PLC0415
    from deploy.data.pitr import restored_settings  # noqa: PLC0415

    began = monotonic()
    if stack is not None and not stopped:
        raise CommandError(
            "the embedded DynamoDB does not stop writes by a policy: end what writes to it, then "
            "add --writes-stopped"
        )
    name, _ = await _restore_tables(settings, stack, to_time, into, served=False)
    source = restored_settings(settings, name)
    builds: list[BuildRequest] = []
    if await is_kept(settings, source):
        environment.say("continuing an interrupted restore: the rows and builds are there already")
    else:
        if not stopped:
            await stop_writes(settings)
            environment.say(f"writes to {settings.environment} are denied to everyone else")
        builds = await _copy_back(settings, source)
        await keep_copy(settings, source)
    if not stopped:
        await allow_writes(settings)
    await end_copy(settings)
    click.echo(
        f"{settings.environment} is as of {to_time} again, verified, "
        f"after {monotonic() - began:.1f} s; the tables of {name} stay until you delete them"
    )
    _print_builds(builds)


async def _copy_back(settings: Settings, source: Settings) -> list["BuildRequest"]:
    """Copies the rows, and requests the builds while nobody else can write yet.

    An interruption meanwhile is repaired by copying again, which must not undo anyone's writes. A
    worker that cannot begin a build yet begins it when the reconciler finds it.
    """
    from deploy.data.builds import request_builds  # noqa: PLC0415
    from deploy.data.copying import copy_back  # noqa: PLC0415
    from deploy.terminal import progress_display  # noqa: PLC0415

    async with environment.open_resources(settings) as resources:
        with progress_display() as display:
            copied = await copy_back(
                resources, source, progress=display.update, message=environment.say
            )
        for table, done in copied.tables.items():
            click.echo(f"{table}: {done.put:,} put, {done.deleted:,} deleted, {done.equal:,} equal")
        return await request_builds(resources, copied.models, copied.probes)


def _next_steps(
    settings: Settings, stack: RunningStack | None, name: str, to_time: str
) -> Iterator[str]:
    """How to continue with a restored environment."""
    current = settings.environment
    bucket = settings.aws.bucket or f"k9-indexes-{current}-ACCOUNT"
    own = " the embedded stack's settings (its stack.json) and" if stack else ""
    yield f"to serve it, start API and worker with{own}"
    yield f"    K9_ENVIRONMENT={name} K9_BUCKET={bucket}"
    yield f"or bring {current} itself back to that time, by new tables of another name:"
    options = f"--copy-back --into {name[:27]}-back{' --writes-stopped' if stack else ''}"
    # The embedded stack of this directory is found without settings.
    where = "" if stack else f"K9_ENVIRONMENT={current} "
    yield f"    {where}k9 restore --to-time {to_time} {options}"
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
