"""Which versions stay, and which are removed: the last few, the current one, and no other for long.

A version that no rule keeps is retired first and removed a grace time later, since a process may be
about to load it; promoting it in between takes it back. Whatever a lost claim or a build that did
not end well has left in S3 is nobody's, and goes at once.
"""

from collections import defaultdict
from datetime import timedelta

import msgspec

from core import telemetry
from core.errors import NotFound
from core.models import Build, Model, now, parse_timestamp
from core.objects import Objects
from core.repositories.builds import BuildRepository, Position
from core.repositories.models import ModelRepository
from core.repositories.promotions import PromotionRepository
from core.settings import Building

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
        settings: Building,
    ) -> None:
        self._models = models
        self._builds = builds
        self._promotions = promotions
        self._objects = objects
        self._kept = settings.versions_kept
        self._grace = timedelta(seconds=settings.version_grace_s)

    async def apply(self, model_version: str) -> Kept:
        """One round over a model version; any number of them may run side by side.

        Raises:
            NotFound: there is no such model version.
            Unavailable: a dependency did not do its part; the next round goes on.
        """
        stored = await self._stored(model_version)
        model = await self._models.get_model(model_version)
        kept = {build.build_id: build for build in await self._newest(model)}
        for build in kept.values():
            await self._promotions.keep(build)
        removed, retired = 0, False
        for build_id, fences in stored.items():
            known = kept.get(build_id) or await self._known(build_id)
            if known is None or known.model_version != model_version:
                continue  # not of this table: after a restore, say
            gone = {f for f in fences if _abandoned(known, f)}
            if known.status == "published" and build_id not in kept:
                if await self._removed(known):
                    gone = set(fences)
                    removed += 1
                else:
                    retired = True
                    kept[build_id] = known
            await self._objects.delete([key for f in gone for key in fences[f]])
        if removed:
            _log.info("versions removed", model_version=model_version, versions=removed)
        watermarks = [str((build.manifest or {}).get("watermark") or "") for build in kept.values()]
        return Kept(min(watermarks, default=None), retired, removed)

    async def _stored(self, model_version: str) -> dict[str, dict[int, list[str]]]:
        """Build id → fence → keys of what S3 has."""
        stored: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        prefix = f"indexes/{model_version}/"
        for key in await self._objects.list_keys(prefix):
            parts = key.removeprefix(prefix).split("/")
            if len(parts) == 3 and parts[1].isdecimal():  # noqa: PLR2004 - build, fence, file
                stored[parts[0]][int(parts[1])].append(key)
        return stored

    async def _newest(self, model: Model) -> list[Build]:
        """The last published versions that are not removed, and the current one."""
        newest: list[Build] = []
        position: Position | None = None
        while True:
            page, position = await self._builds.list_builds(
                model.model_version, limit=_PAGE, position=position
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


def _abandoned(build: Build, fence: int) -> bool:
    """Whether a prefix in S3 is of a try that did not publish and never will."""
    if build.open:
        return fence < build.fence
    return build.status != "published" or fence != build.fence
