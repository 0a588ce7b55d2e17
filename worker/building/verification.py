"""A verification: a build's files made again from the rows as they are now, and compared."""

import msgspec

from core.errors import BuildFailed, Corrupt, NotFound
from core.index.comparison import comparable, digest
from core.index.manifest import Manifest
from core.models import Build, Model
from core.repositories.verifications import Difference, Verification
from core.resources import Resources
from worker.building.builder import Making


async def verify(
    resources: Resources, verification: Build, model: Model, making: Making
) -> Verification:
    """What the files of a published build are, made anew under the same parameters.

    Raises:
        BuildFailed: there is no such build, it was not published, or it was removed.
    """
    manifest = await _manifest_of(resources, verification)
    pulled = await making.pull(model, manifest)
    made = await making.make(model, pulled, None, threads=manifest.software.threads)
    names = comparable(manifest, made.manifest)
    differences = tuple(
        Difference(name, before, after)
        for name in names
        if (before := digest(manifest, name)) != (after := digest(made.manifest, name))
    )
    changed = pulled.changed
    if differences and not changed and pulled.recent != manifest.recent:
        # What changed bears an earlier time than that at which the build could see it. Builds of
        # earlier releases did not note what they saw.
        changed = max(manifest.recent is not None, pulled.recent.rows)
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
                f"build {build.build_id} was removed at {build.removed_at}; what was deleted since "
                "it was made is not known any more, so that nothing can be said"
            )
        return msgspec.convert(build.manifest, Manifest)
    except NotFound as error:
        raise BuildFailed(str(error)) from None
    except msgspec.ValidationError as error:
        raise Corrupt(f"the manifest of build {verification.verifies} does not hold") from error
