"""A verification: a published build's files, built again from the current rows and compared."""

from core.errors import BuildFailed, Corrupt, NotFound
from core.index.comparison import digest
from core.index.manifest import Manifest, manifest_of
from core.models import Build
from core.repositories.verifications import Difference, Verification
from core.resources import Resources
from worker.building.builder import VersionBuilder


async def verify(
    resources: Resources, verification: Build, builder: VersionBuilder
) -> Verification:
    """Builds the files again with the same parameters, and compares their checksums.

    Raises:
        BuildFailed: there is no such build, it was not published, or it was removed.
    """
    manifest = await _manifest_of(resources, verification)
    pulled = await builder.pull(manifest)
    built = await builder.build(pulled, threads=manifest.software.threads)
    files = built.output.files
    names = tuple(sorted(set(manifest.files) | set(files)))
    differences = tuple(
        Difference(name, before, after)
        for name in names
        if (before := digest(manifest.files, name)) != (after := digest(files, name))
    )
    changed = pulled.rows_changed
    if differences and not changed:
        # A change may have a time from before the build's pull, which did not see it yet. Builds of
        # earlier releases recorded nothing recent.
        for now, then in (
            (pulled.recent, manifest.recent),
            (pulled.recent_attributes, manifest.recent_attributes),
        ):
            if now is not None and now != then:
                changed += max(then is not None, now.rows)
    return Verification(
        build_id=manifest.build_id,
        model_version=manifest.model_version,
        compared=names,
        differences=differences,
        rows_changed=changed,
    )


async def _manifest_of(resources: Resources, verification: Build) -> Manifest:
    try:
        build = await resources.builds.get_build(verification.verifies or "")
        if build.manifest is None:
            raise BuildFailed(f"build {build.build_id} was not published: it is {build.status}")
        if build.removed_at is not None:
            raise BuildFailed(
                f"build {build.build_id} was removed at {build.removed_at}: tombstones deleted "
                "since then make it impossible to verify"
            )
        manifest = manifest_of(build.manifest)
    except NotFound as error:
        raise BuildFailed(str(error)) from None
    if manifest is None:
        raise Corrupt(f"the manifest of build {verification.verifies} is not valid")
    return manifest
