"""Deletes a model version that an operator marked: its builds, rows, files and record, in order.

Each round does what can be done now and ends where something must be waited for; the reconciler
starts the next one. Any worker may run it: what a round leaves, or a worker that dies in one, the
next round finds. Nothing is removed before all who may still write have stopped, and the record is
removed last, so that the name is taken until nothing is left.
"""

from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from functools import partial

from core import telemetry
from core.errors import BuildEnded, K9Error, LeaseLost, NotFound
from core.models import Build, Model, now, parse_timestamp
from core.repositories.model_deletions import ModelDeletion
from core.resources import Resources
from worker.leases import released
from worker.retention import stored_builds

_log = telemetry.logger(__name__)


async def delete_model(resources: Resources, model: Model) -> bool:
    """One round over a marked model version; True once nothing of it is left.

    Errors are logged, not raised: the next round continues from there.
    """
    try:
        deletion = await resources.model_deletions.claim(model)
        if deletion is None:
            return False  # another worker has it
        async with released(partial(resources.model_deletions.release, deletion)):
            return await _delete(resources, deletion)
    except LeaseLost as error:
        _log.info("deletion lost to another worker", reason=str(error))
    except K9Error as error:
        _log.warning("deletion postponed", model_version=model.model_version, reason=str(error))
    return False


async def _delete(resources: Resources, deletion: ModelDeletion) -> bool:
    model = deletion.model
    builds = await _all_builds(resources, model)
    open_builds = [build for build in builds if build.open]
    for build in open_builds:
        with suppress(NotFound, BuildEnded):
            verification = build.verifies is not None
            await resources.builds.cancel(build.build_id, verification=verification)
    if open_builds or now() < _quiet_at(resources, model):
        return False
    removed = 0
    pages = resources.embeddings.get_embeddings_by_model(model, vectors=False)
    async with aclosing(pages):
        async for page in pages:
            await resources.embeddings.remove_rows(page)
            removed += len(page)
            await resources.model_deletions.renew(deletion)
    async with aclosing(resources.attributes.keys_by_model(model)) as attributes:
        async for items in attributes:
            await resources.attributes.remove(items)
            removed += len(items)
            await resources.model_deletions.renew(deletion)
    if removed:
        _log.info("rows removed", model_version=model.model_version, rows=removed)
        return False  # the index may lag: a later round must find none
    if any(now() < _released_at(resources, build) for build in builds):
        return False
    files = await stored_builds(resources, model.model_version)
    for build in builds:
        await resources.model_deletions.renew(deletion)
        attempts = files.get(build.build_id, {})
        await resources.objects.delete(key for keys in attempts.values() for key in keys)
        await resources.model_deletions.remove_build(build)
    if builds or not await resources.model_deletions.remove_model(deletion):
        return False  # the index of builds may lag: a later round must find none
    _log.info("model version deleted", model_version=model.model_version)
    return True


def _quiet_at(resources: Resources, model: Model) -> datetime:
    """When no write under the unmarked record can arrive any more, and the index shows all.

    A process may have read the record just before it was marked. It writes unconditionally until
    `ModelRepository.batch_until` at the latest; `write_settle_s` is for requests in flight and for
    the index.
    """
    ingest = resources.settings.ingest
    wait_s = ingest.model_cache_s + ingest.batch_deadline_s + ingest.write_settle_s
    return parse_timestamp(model.deleting_at or model.created_at) + timedelta(seconds=wait_s)


def _released_at(resources: Resources, build: Build) -> datetime:
    """When the worker of an ended build has noticed its end, and uploads no more files."""
    if build.ended_at is None or not build.fence:
        return parse_timestamp(build.requested_at)
    lease = timedelta(seconds=resources.settings.building.lease_s)
    return parse_timestamp(build.ended_at) + lease


async def _all_builds(resources: Resources, model: Model) -> list[Build]:
    """Every build and verification of the model version that the indexes show."""
    name = model.model_version
    found = {build.build_id: build for build in await resources.builds.list_open()}
    if model.open_build_id is not None:
        with suppress(NotFound):
            opened = await resources.builds.get_build(model.open_build_id)
            found[opened.build_id] = opened
    found = {key: build for key, build in found.items() if build.model_version == name}
    found |= {build.build_id: build async for build in resources.builds.all_builds(name)}
    return list(found.values())
