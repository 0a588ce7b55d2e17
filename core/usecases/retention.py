"""Which versions stay, and which are removed: the last few, the current one, and no other for long.

A version that no rule keeps is retired first and removed a grace time later, since a process may be
about to load it; promoting it in between takes it back. Whatever a lost claim or a build that did
not end well has left in S3 is nobody's, and goes at once.

A bucket may be shared by environments, of which one may have been restored from another, so that
their tables have builds in common. What is below another environment's prefix is read and never
retired. Files of releases up to 23e14f8 have no environment in their names: they are this one's
where the bucket is.
"""

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta

import msgspec

from core import names, telemetry
from core.errors import NotFound
from core.models import Build, Model, now, parse_timestamp
from core.objects import Objects
from core.repositories.builds import BuildPosition, BuildRepository
from core.repositories.models import ModelRepository
from core.repositories.promotions import PromotionRepository
from core.settings import Settings
from core.versions import VersionRecord

_PAGE = 20

_log = telemetry.logger(__name__)


class Kept(msgspec.Struct, frozen=True):
    """What is left after a round."""

    watermark: str | None
    """The oldest one of the versions that stay: what happened before it is in all of them."""
    retired: bool
    """Whether some wait for the end of their grace time."""
    removed: int


class Retention:
    """Removes what is not kept."""

    def __init__(
        self,
        models: ModelRepository,
        builds: BuildRepository,
        promotions: PromotionRepository,
        objects: Objects,
        settings: Settings,
    ) -> None:
        self._models = models
        self._builds = builds
        self._promotions = promotions
        self._objects = objects
        self._environment = settings.environment
        self._early = names.is_default_bucket(settings.environment, settings.aws.bucket)
        """Whether files of releases up to 23e14f8 are this environment's."""
        self._kept = settings.building.versions_kept
        self._grace = timedelta(seconds=settings.building.version_grace_s)

    async def apply(self, model_version: str) -> Kept:
        """One round over a model version; any number of them may run side by side.

        Raises:
            NotFound: there is no such model version.
            Unavailable: a dependency did not do its part; the next round goes on.
        """
        stored = await self.files_of(model_version)
        model = await self._models.get_model(model_version)
        kept = {build.build_id: build for build in await self._newest(model)}
        for build in kept.values():
            await self._promotions.keep(build)
        removed, retired = 0, False
        for build_id, tries in stored.items():
            known = kept.get(build_id) or await self._known(build_id)
            if known is None or known.model_version != model_version:
                continue  # not of this table: after a restore, say
            published = VersionRecord.of(known).prefix
            gone = {prefix for prefix in tries if _abandoned(known, prefix, published)}
            ours = known.status == "published" and published in tries
            if ours and build_id not in kept:
                if await self._removed(known):
                    gone.add(published)
                    removed += 1
                else:
                    retired = True
                    kept[build_id] = known
            await self.remove_files({prefix: tries[prefix] for prefix in gone})
        if removed:
            _log.info("versions removed", model_version=model_version, versions=removed)
        watermarks = [str((build.manifest or {}).get("watermark") or "") for build in kept.values()]
        return Kept(min(watermarks, default=None), retired, removed)

    async def files_of(self, model_version: str) -> dict[str, dict[str, list[str]]]:
        """Build id → prefix of a try → keys of what S3 has that this environment may delete."""
        stored: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        prefixes = [names.versions_prefix(self._environment, model_version)]
        if self._early:
            prefixes.append(names.legacy_versions_prefix(model_version))
        for prefix in prefixes:
            for key in await self._objects.list_keys(prefix):
                parts = key.removeprefix(prefix).split("/")
                if len(parts) == 3 and parts[1].isdecimal():  # noqa: PLR2004 - build, fence, file
                    build_id, fence, _ = parts
                    stored[build_id][f"{prefix}{build_id}/{fence}/"].append(key)
        return stored

    async def remove_files(self, tries: Mapping[str, list[str]]) -> None:
        """Removes files as `files_of` gives them for one build.

        Raises:
            Unavailable: some are still there.
        """
        await self._objects.delete([key for keys in tries.values() for key in keys])

    async def _newest(self, model: Model) -> list[Build]:
        """The last published versions that are not removed, and the current one."""
        newest: list[Build] = []
        position: BuildPosition | None = None
        while True:
            page, position = await self._builds.list_builds(
                model.model_version, limit=_PAGE, position=position, generation=model.generation
            )
            newest += [b for b in page if b.status == "published" and b.removed_at is None]
            if position is None or len(newest) >= self._kept:
                break
        newest = newest[: self._kept]
        current = model.current_build_id
        if current is not None and current not in {build.build_id for build in newest}:
            known = await self._known(current)
            newest += [known] if known is not None else []
        return newest

    async def _known(self, build_id: str) -> Build | None:
        try:
            return await self._builds.get_build(build_id)
        except NotFound:
            return None

    async def _removed(self, build: Build) -> bool:
        """Whether a published version that no rule keeps is removed by now."""
        if build.removed_at is not None:
            return True
        if build.retired_at is None:
            await self._promotions.retire(build)
            if self._grace:
                return False
            build = await self._builds.get_build(build.build_id)
        if build.retired_at is None or now() < parse_timestamp(build.retired_at) + self._grace:
            return False
        return await self._promotions.remove(build)


def _abandoned(build: Build, prefix: str, published: str) -> bool:
    """Whether a prefix in S3 is of a try that did not publish and never will."""
    if build.open:
        return int(prefix.split("/")[-2]) < build.fence
    return build.status != "published" or prefix != published
