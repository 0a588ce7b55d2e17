"""Which published versions are kept: the latest few and the current one. The others are removed.

A version that no rule keeps is retired first and removed a grace time later, because a process may
be about to load it; promoting it in between takes it back. What lost claims and failed builds left
in S3 is removed at once.

Environments may share a bucket, and one may have been restored from another, so that their tables
have builds in common. Files below another environment's prefix are never removed. Files of releases
up to 23e14f8 have no environment in their names: they belong to the bucket's own environment.
"""

from collections import defaultdict
from contextlib import aclosing
from datetime import timedelta

import msgspec

from core import names, telemetry
from core.models import Build, Model, now, parse_timestamp
from core.resources import Resources
from core.versions import VersionRecord

_log = telemetry.logger(__name__)

StoredBuild = dict[str, list[str]]
"""Prefix of an attempt's files → the keys below it."""


class RetentionResult(msgspec.Struct, frozen=True):
    """What one round left."""

    watermark: str | None
    """The earliest of the versions that are left: all of them include what happened before it."""
    retired: bool
    """Whether some wait for the end of their grace time."""
    removed: int


async def apply_retention(resources: Resources, model_version: str) -> RetentionResult:
    """One round over a model version; any number of rounds may run concurrently.

    Raises:
        NotFound: there is no such model version.
        Unavailable: DynamoDB or S3 was away; the next round continues.
    """
    stored = await stored_builds(resources, model_version)
    model = await resources.models.get_model(model_version)
    kept = {build.build_id: build for build in await _kept_builds(resources, model)}
    for latest in kept.values():
        await resources.promotions.keep(latest)
    removed, retired = 0, False
    for build_id, attempts in stored.items():
        build = kept.get(build_id) or await resources.builds.find_build(build_id)
        if build is None or build.model_version != model_version:
            continue  # not in this table, as after a restore
        published = VersionRecord.of(build).prefix
        garbage = {prefix for prefix in attempts if _is_abandoned(build, prefix, published)}
        if build.status == "published" and published in attempts and build_id not in kept:
            if await _remove_record(resources, build):
                garbage.add(published)
                removed += 1
            else:
                retired = True
                kept[build_id] = build
        await resources.objects.delete(key for prefix in garbage for key in attempts[prefix])
    if removed:
        _log.info("versions removed", model_version=model_version, versions=removed)
    watermarks = [str((build.manifest or {}).get("watermark") or "") for build in kept.values()]
    return RetentionResult(min(watermarks, default=None), retired, removed)


async def stored_builds(resources: Resources, model_version: str) -> dict[str, StoredBuild]:
    """The files in S3 that this environment may remove, by build id."""
    settings = resources.settings
    stored: dict[str, StoredBuild] = defaultdict(lambda: defaultdict(list))
    prefixes = [names.versions_prefix(settings.environment, model_version)]
    if names.is_default_bucket(settings.environment, settings.aws.bucket):
        prefixes.append(names.legacy_versions_prefix(model_version))
    for prefix in prefixes:
        for key in await resources.objects.list_keys(prefix):
            parts = key.removeprefix(prefix).split("/")
            if len(parts) == 3 and parts[1].isdecimal():  # noqa: PLR2004 - build, fence, file
                build_id, fence, _ = parts
                stored[build_id][f"{prefix}{build_id}/{fence}/"].append(key)
    return stored


async def _kept_builds(resources: Resources, model: Model) -> list[Build]:
    """The latest published versions that are not removed, and the current one."""
    limit = resources.settings.building.versions_kept
    latest: list[Build] = []
    async with aclosing(
        resources.builds.all_builds(model.model_version, model.generation)
    ) as builds:
        async for build in builds:
            if build.status == "published" and build.removed_at is None:
                latest.append(build)
            if len(latest) == limit:
                break
    current = model.current_build_id
    if current is not None and current not in {build.build_id for build in latest}:
        found = await resources.builds.find_build(current)
        latest += [found] if found is not None else []
    return latest


async def _remove_record(resources: Resources, build: Build) -> bool:
    """Retires a version that no rule keeps, or marks it as removed; True if it is removed now."""
    grace = timedelta(seconds=resources.settings.building.version_grace_s)
    if build.removed_at is not None:
        return True
    if build.retired_at is None:
        await resources.promotions.retire(build)
        if grace:
            return False
        build = await resources.builds.get_build(build.build_id)
    if build.retired_at is None or now() < parse_timestamp(build.retired_at) + grace:
        return False
    return await resources.promotions.remove(build)


def _is_abandoned(build: Build, prefix: str, published: str) -> bool:
    """Whether a prefix belongs to an attempt that did not publish and never will."""
    if build.open:
        return int(prefix.split("/")[-2]) < build.fence
    return build.status != "published" or prefix != published
