"""A verification: a build's files made again from the rows as they are now, and compared."""

import msgspec

from core.errors import BuildFailed, Corrupt, NotFound
from core.models import Build, Model
from core.repositories.verifications import Difference, Verification
from core.resources import Resources
from core.vectors.files import INDEX, NEIGHBORS, NPZ, PARQUET, REPORT, SCORES
from core.vectors.manifest import Manifest
from worker.building.making import Making

_ABSENT = "absent"


async def verify(
    resources: Resources, verification: Build, model: Model, making: Making
) -> Verification:
    """What the files of a published build are, made anew under the same parameters.

    Raises:
        BuildFailed: there is no such build, or it was not published.
    """
    manifest = await _manifest_of(resources, verification)
    pulled = await making.pull(model, since=manifest.watermark)
    made = await making.make(model, pulled, None, threads=manifest.software.threads)
    names = _comparable(manifest, made.manifest)
    differences = tuple(
        Difference(name, before, after)
        for name in names
        if (before := _digest(manifest, name)) != (after := _digest(made.manifest, name))
    )
    changed = sum(moment >= manifest.pulled_at for moment in pulled.recent)
    if differences and not changed:
        # A row may bear an earlier time than that at which the build could see it.
        changed = len(pulled.recent)
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
        return msgspec.convert(build.manifest, Manifest)
    except NotFound as error:
        raise BuildFailed(str(error)) from None
    except msgspec.ValidationError as error:
        raise Corrupt(f"the manifest of build {verification.verifies} does not hold") from error


def _comparable(manifest: Manifest, made: Manifest) -> tuple[str, ...]:
    """The files that are the same bytes for the same rows.

    A graph that several threads made is another one each time, and so is what it was measured at,
    and a matrix that was made by it.
    """
    names = set(manifest.files) | set(made.files)
    if not manifest.parameters.deterministic and manifest.index.family != "exact":
        names -= {INDEX, REPORT}
        if not manifest.matrix.exact:
            names -= {NEIGHBORS, SCORES, PARQUET, NPZ}
    return tuple(sorted(names))


def _digest(manifest: Manifest, name: str) -> str:
    info = manifest.files.get(name)
    return _ABSENT if info is None else info.sha256
