"""`k9 verify-build`."""

import asyncio
from collections.abc import Sequence

import click

from core.errors import K9Error, NotFound
from core.models import Build
from core.repositories.verifications import Verification, result_of
from core.resources import Resources, open_resources
from deploy.cli import environment
from deploy.cli.progress import BuildDisplay, build_display
from deploy.errors import CommandError

_POLL_S = 0.5
_EQUAL, _DIFFERENT, _CHANGED, _NOT_VERIFIED = 0, 1, 2, 3


@click.command("verify-build")
@click.argument("build_or_model", metavar="[BUILD_ID|MODEL]", required=False)
def command(build_or_model: str | None) -> int:
    """Makes a build's files again from DynamoDB and compares their SHA-256 with its manifest's.

    Of a MODEL it takes the current build, and without an argument that of every model version. The
    index is compared where the build was deterministic. A worker does it; nothing is published.

    Exits 0 when all is equal, 1 on a difference, 2 when rows have changed since the build, so that
    nothing can be said, and 3 when a build could not be made again. With Ctrl-C the worker's part
    goes on, and changes nothing.
    """
    try:
        return asyncio.run(_verify(build_or_model))
    except (K9Error, CommandError) as error:
        raise CommandError(str(error), _NOT_VERIFIED) from error


async def _verify(build_or_model: str | None) -> int:
    settings, _ = environment.enter()
    async with open_resources(settings) as resources:
        statuses = [
            await _status_of(resources, build) for build in await _chosen(resources, build_or_model)
        ]
    return next((s for s in (_DIFFERENT, _NOT_VERIFIED, _CHANGED) if s in statuses), _EQUAL)


async def _status_of(resources: Resources, build: Build) -> int:
    """One that cannot be made again is said, and does not keep the others from being verified."""
    try:
        return await _verify_one(resources, build)
    except CommandError as error:
        click.echo(f"k9: {error}", err=True)
        return _NOT_VERIFIED


async def _chosen(resources: Resources, build_or_model: str | None) -> Sequence[Build]:
    if build_or_model is None:
        models = await resources.models.list_models()
        current = [model.current_build_id for model in models if model.current_build_id]
        if not current:
            raise CommandError("no model version has a published build")
        return [await resources.builds.get_build(build_id) for build_id in current]
    try:
        model = await resources.models.get_model(build_or_model)
    except NotFound:
        try:
            build = await resources.builds.get_build(build_or_model)
        except NotFound:
            raise CommandError(
                f"there is neither a model version nor a build {build_or_model!r}"
            ) from None
    else:
        if model.current_build_id is None:
            raise CommandError(f"{build_or_model} has no published build")
        build = await resources.builds.get_build(model.current_build_id)
    if build.status != "published":
        raise CommandError(f"build {build.build_id} was not published: it is {build.status}")
    return [build]


async def _verify_one(resources: Resources, build: Build) -> int:
    opened = await resources.verifications.open(build)
    await resources.queue.enqueue(opened.build_id, opened.fence)
    with build_display() as display:
        ended = await _ended(resources, opened, display)
    found = result_of(ended)
    if found is None:
        raise CommandError(f"build {build.build_id} could not be made again: {ended.error}")
    return _tell(found)


async def _ended(resources: Resources, build: Build, display: BuildDisplay) -> Build:
    while build.open:
        await asyncio.sleep(_POLL_S)
        build = await resources.builds.get_build(build.build_id)
        progress = build.progress
        display.show(
            {
                "status": build.status,
                "attempt": build.fence,
                "error": build.error,
                "progress": {
                    "stage": progress.stage,
                    "done": progress.done,
                    "total": progress.total,
                },
            }
        )
    return build


def _tell(found: Verification) -> int:
    name = f"build {found.build_id} of {found.model_version}"
    if not found.differences:
        click.echo(f"{name}: {len(found.compared)} files are equal: {', '.join(found.compared)}")
        return _EQUAL
    if found.rows_changed:
        click.echo(
            f"{name}: {found.rows_changed} rows changed since it was built; nothing can be said"
        )
        return _CHANGED
    for difference in found.differences:
        click.echo(f"{difference.name}: {difference.sha256} in the manifest, {difference.made} now")
    click.echo(
        f"{name}: {len(found.differences)} of {len(found.compared)} files differ; no row changed"
    )
    return _DIFFERENT
