"""Deletes a model version that an operator marked: its builds, imports, rows, files and record.

Each round does what can be done now and ends where something must be waited for; the reconciler
starts the next one. Any worker may run it: what a round leaves, or a worker that dies in one, the
next round finds. Nothing is removed before all who may still write have stopped, and the record is
removed last, so that the name is taken until nothing is left.
"""

from collections.abc import Sequence
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from functools import partial

from core import names, telemetry
from core.errors import BuildEnded, ImportEnded, K9Error, LeaseLost, NotFound, TableMissing
from core.limits import PAGE_ROWS_MAX
from core.models import Build, Import, Model, now, parse_timestamp
from core.repositories.imports import ImportPosition
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
    imports = await _all_imports(resources, model)
    cancelled = await _cancel_open(resources, builds, imports)
    if cancelled or now() < _quiet_at(resources, model):
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
    ended: list[Build | Import] = [*builds, *imports]
    if any(now() < _released_at(resources, each) for each in ended):
        return False
    files = await stored_builds(resources, model.model_version)
    for build in builds:
        await resources.model_deletions.renew(deletion)
        attempts = files.get(build.build_id, {})
        await resources.objects.delete(key for keys in attempts.values() for key in keys)
        await resources.model_deletions.remove_build(build)
    for row in imports:
        await resources.model_deletions.renew(deletion)
        await _remove_import(resources, row)
    if builds or imports:
        return False  # their indexes may lag: a later round must find none
    await _forget_imports(resources, model)
    if not await resources.model_deletions.remove_model(deletion):
        return False
    _log.info("model version deleted", model_version=model.model_version)
    return True


async def _cancel_open(
    resources: Resources, builds: Sequence[Build], imports: Sequence[Import]
) -> bool:
    """Cancels what is open; whether there was anything."""
    open_builds = [build for build in builds if build.open]
    for build in open_builds:
        with suppress(NotFound, BuildEnded):
            verification = build.verifies is not None
            await resources.builds.cancel(build.build_id, verification=verification)
    open_imports = [each for each in imports if each.open]
    for each in open_imports:
        with suppress(NotFound, ImportEnded):
            await resources.imports.cancel(each.import_id)
    return bool(open_builds or open_imports)


def _quiet_at(resources: Resources, model: Model) -> datetime:
    """When no write under the unmarked record can arrive any more, and the index shows all.

    A process may have read the record just before it was marked. It writes unconditionally until
    `ModelRepository.batch_until` at the latest; `write_settle_s` is for requests in flight and for
    the index.
    """
    ingest = resources.settings.ingest
    wait_s = ingest.model_cache_s + ingest.batch_deadline_s + ingest.write_settle_s
    return parse_timestamp(model.deleting_at or model.created_at) + timedelta(seconds=wait_s)


def _released_at(resources: Resources, build: Build | Import) -> datetime:
    """When the worker of an ended build or import has noticed its end, and writes no more."""
    if build.ended_at is None or not build.fence:
        return parse_timestamp(build.requested_at)
    lease = timedelta(seconds=resources.settings.building.lease_s)
    return parse_timestamp(build.ended_at) + lease


async def _all_imports(resources: Resources, model: Model) -> list[Import]:
    """Every import of the model version that the indexes show; none where there is no table."""
    name = model.model_version
    try:
        found = {each.import_id: each for each in await resources.imports.list_open()}
        found = {key: each for key, each in found.items() if each.model_version == name}
        position: ImportPosition | None = None
        while True:
            page, position = await resources.imports.list_imports(
                name, limit=PAGE_ROWS_MAX, position=position
            )
            found |= {each.import_id: each for each in page}
            if position is None:
                return list(found.values())
    except TableMissing:
        return []


async def _remove_import(resources: Resources, row: Import) -> None:
    """Removes an import with its report, and with the object that was uploaded for it."""
    environment = resources.settings.environment
    keys = await resources.objects.list_keys(names.bad_rows_prefix(environment, row.import_id))
    if row.upload is not None:
        keys.append(row.parameters.key)
    await resources.objects.delete(keys)
    await resources.imports.remove(row)


async def _forget_imports(resources: Resources, model: Model) -> None:
    with suppress(TableMissing):
        await resources.imports.forget_model(model.model_version)


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
