"""`k9 verify-build`."""

from collections.abc import Sequence

import click

from core.errors import K9Error, NotFound
from core.models import Build
from core.repositories.verifications import Verification, result_of
from core.resources import Resources
from deploy.cli import environment
from deploy.data.builds import wait_for_build
from deploy.errors import CommandError
from deploy.terminal import build_display

_EQUAL, _DIFFERENT, _CHANGED, _NOT_VERIFIED = 0, 1, 2, 3


@click.command("verify-build")
@click.argument("build_or_model", metavar="[BUILD_ID|MODEL]", required=False)
@environment.async_command
async def command(build_or_model: str | None) -> int:
    """Rebuilds a build's files from DynamoDB and compares their SHA-256 with its manifest.

    Of a MODEL it takes the current build, and without an argument that of every model version. A
    worker does it; nothing is published.

    Exits 0 when all files are equal, 1 when some differ, 2 when rows have changed since the build,
    so that files cannot be compared, and 3 when a build could not be rebuilt. Ctrl-C leaves the
    worker's verification running; it changes nothing.
    """
    try:
        settings, _ = environment.enter()
        async with environment.open_resources(settings) as resources:
            builds = await _chosen(resources, build_or_model)
            statuses = [await _status_of(resources, build_id) for build_id in builds]
    except (K9Error, CommandError) as error:
        raise CommandError(str(error), _NOT_VERIFIED) from error
    return next((s for s in (_DIFFERENT, _NOT_VERIFIED, _CHANGED) if s in statuses), _EQUAL)


async def _status_of(resources: Resources, build_id: str) -> int:
    """The status of one build. One that fails does not keep the others from being verified."""
    try:
        return await _verify_one(resources, await resources.builds.get_build(build_id))
    except (K9Error, CommandError) as error:
        click.echo(f"k9: {error}", err=True)
        return _NOT_VERIFIED


async def _chosen(resources: Resources, build_or_model: str | None) -> Sequence[str]:
    """The ids of the builds to verify."""
    if build_or_model is None:
        models = await resources.models.list_models()
        current = [model.current_build_id for model in models if model.current_build_id]
        if not current:
            raise CommandError("no model version has a published build")
        return current
    try:
        model = await resources.models.get_model(build_or_model)
    except NotFound:
        build = await resources.builds.find_build(build_or_model)
        if build is None:
            raise CommandError(
                f"{build_or_model!r} is neither a model version nor a build"
            ) from None
    else:
        if model.current_build_id is None:
            raise CommandError(f"{build_or_model} has no published build")
        build = await resources.builds.get_build(model.current_build_id)
    if build.status != "published":
        raise CommandError(f"build {build.build_id} was not published: it is {build.status}")
    return [build.build_id]


async def _verify_one(resources: Resources, build: Build) -> int:
    opened = await resources.verifications.open(build)
    await resources.queue.enqueue(opened.build_id, opened.fence)
    with build_display() as display:
        ended = await wait_for_build(resources, opened.build_id, display)
    verification = result_of(ended)
    if verification is None:
        raise CommandError(f"build {build.build_id} could not be rebuilt: {ended.error}")
    return _print_result(verification)


def _print_result(found: Verification) -> int:
    name = f"build {found.build_id} of {found.model_version}"
    if not found.differences:
        click.echo(f"{name}: {len(found.compared)} files are equal: {', '.join(found.compared)}")
        return _EQUAL
    if found.rows_changed:
        click.echo(
            f"{name}: {found.rows_changed} rows changed since it was built, so its files cannot be "
            "compared"
        )
        return _CHANGED
    for difference in found.differences:
        click.echo(f"{difference.name}: {difference.sha256} in the manifest, {difference.made} now")
    click.echo(
        f"{name}: {len(found.differences)} of {len(found.compared)} files differ; no row changed"
    )
    return _DIFFERENT
