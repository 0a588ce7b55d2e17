"""A version of the rows of the current one, of which only the attributes have changed since.

Its index and matrix are those of the current version, and only the columns are built. Whether a
row has changed is known without reading all of them: those changed after the watermark of the
current version must be the very ones that it was built from. A row that changes later than they are
read has a time after the new version's watermark, and is followed from there as after any build.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from core import __version__, telemetry
from core.errors import NewerFormat
from core.index.manifest import Manifest, RecentRows, manifest_of
from core.vectors.families import software
from worker.building.builder import BuildResult, PullResult, VersionBuilder
from worker.building.pull_digest import PullDigest

_FAISS: Final = software()["faiss"]
_log = telemetry.logger(__name__)


async def reuse_current(builder: VersionBuilder) -> tuple[PullResult, BuildResult] | None:
    """The current version's files with new columns; None where all has to be built.

    Raises:
        BuildFailed: the attributes are larger than allowed.
        BuildProcessCrashed: the process ended without a result.
    """
    manifest = await _current(builder)
    if manifest is None or not _may_reuse(builder, manifest):
        return None
    pulled = await _pull(builder, manifest)
    if pulled is None:
        return None
    directory = builder.directory / "reused"
    if await builder.fetch_files(directory, tuple(manifest.files)) is None:
        return None
    _log.info(
        "only attributes changed",
        build_id=builder.requested.build_id,
        model_version=builder.model.model_version,
        reused=manifest.build_id,
    )
    return pulled, await builder.build_columns(pulled, directory)


async def _current(builder: VersionBuilder) -> Manifest | None:
    """The manifest of the current version, as the builds table has it."""
    model = builder.model
    if model.current_build_id is None or not model.has_attributes:
        return None
    build = await builder.resources.builds.find_build(model.current_build_id)
    try:
        return None if build is None else manifest_of(build.manifest)
    except NewerFormat:
        return None


def _may_reuse(builder: VersionBuilder, manifest: Manifest) -> bool:
    """Whether a build of the same rows would give the same index and matrix."""
    asked, made_by = builder.requested.parameters, manifest.software
    return (
        manifest.data == builder.model.data
        and asked == manifest.parameters.again()
        and (made_by.k9, made_by.faiss) == (__version__, _FAISS)
    )


async def _pull(builder: VersionBuilder, manifest: Manifest) -> PullResult | None:
    """All attributes, if some have changed and no row has; None otherwise."""
    began = time.perf_counter()
    pulled_at, watermark = builder.begin_pull()
    since, model, resources = manifest.watermark, builder.model, builder.resources
    if manifest.recent is None or watermark < since:
        return None
    recent = PullDigest(watermark, pulled_at)

    def add_rows(digest: PullDigest, page: Any) -> None:
        builder.costs.count_page(page)
        digest.append(page)
        recent.append(page)

    def add_attributes(digest: PullDigest, page: Any) -> None:
        builder.costs.count_attributes(page)
        digest.append_attributes(page)

    rows = resources.embeddings.get_embeddings_by_model(model, since, vectors=False)
    if not await _same(rows, add_rows, manifest.recent):
        return None
    attributes = resources.attributes.changed_since(model, since)
    if manifest.recent_attributes is not None and await _same(
        attributes, add_attributes, manifest.recent_attributes
    ):
        return None
    directory = builder.directory / "attributes"
    directory.mkdir()
    recent_attributes = PullDigest(watermark, pulled_at)
    await builder.pull_attributes(directory, recent_attributes)
    return PullResult(
        directory=directory,
        watermark=watermark,
        pulled_at=pulled_at,
        seconds=time.perf_counter() - began,
        recent=recent.recent_rows(),
        recent_attributes=recent_attributes.recent_rows(),
    )


async def _same(
    pages: AsyncGenerator[Any, None], add: Callable[[PullDigest, Any], None], then: RecentRows
) -> bool:
    """Whether the changes are those that were recent then; read no further than they may be."""
    digest = PullDigest(then.since, then.since)
    async with aclosing(pages):
        async for page in pages:
            add(digest, page)
            if digest.recent_rows().rows > then.rows:
                return False
    return digest.recent_rows() == then
