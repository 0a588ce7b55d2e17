"""Files in S3 or in the cache that fit together and are not those that were published."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from api.app import create_app
from core.index.files import PARQUET
from core.index.manifest import MANIFEST
from core.models import Build
from core.resources import Resources
from core.settings import Settings
from core.versions import VersionRecord, VersionStore
from tests.api.conftest import MODEL, Service
from tests.api.pool import Pool
from tests.api.serving import (
    assert_problem,
    build_here,
    client_of,
    eventually,
    path_of,
    started,
    vector,
)
from tests.api.shop import until
from tests.worker.forgery import forge, forged, mend, replace_object
from tests.worker.work import ensure


def refused(where: str) -> float:
    """How many versions were refused so far."""
    return REGISTRY.get_sample_value("k9_versions_refused_total", {"reason": where}) or 0.0


async def published(resources: Resources, model: str, build_id: str) -> Build:
    """A build that was asked for, done."""
    await build_here(resources, build_id)
    build = await resources.builds.get_build(build_id)
    assert build.status == "published", (model, build.error)
    return build


@pytest.fixture
async def local(resources: Resources, api_settings: Settings, tmp_path: Path) -> Resources:
    """Resources with a cache of this test's own."""
    serving = msgspec.structs.replace(api_settings.serving, cache_dir=tmp_path / "cache")
    settings = msgspec.structs.replace(api_settings, serving=serving)
    versions = VersionStore(resources.objects, settings.environment, serving.cache_dir)
    return replace(resources, settings=settings, versions=versions)


async def test_a_forged_version_is_refused_and_the_one_before_answers(
    local: Resources, pool: Pool
) -> None:
    """With the reason in the log, in a count and in readiness; the true one is taken again."""
    model, rows = "m-forged", [(f"p{row}", vector(row)) for row in range(20)]
    await local.embedding_service.store_batch(model, rows)
    requests = local.build_service
    asked = await requests.request_automatic(model)
    first = await published(local, model, asked.build_id)
    asked = await requests.request_automatic(model)
    app = create_app(local.settings, local)
    async with started(app), client_of(app, pool.token("operators")) as client:
        await eventually(client, model)
    second = await published(local, model, asked.build_id)
    true = await forge(local.objects, VersionRecord.of(second).prefix)
    before = refused("s3")
    app = create_app(local.settings, local)
    with capture_logs() as lines:
        async with started(app), client_of(app, pool.token("operators")) as client:
            ready: dict[str, Any] = {}

            async def troubled() -> bool:
                ready.update((await client.get("/health/ready")).json())
                return model in ready["troubles"]

            async def recovered() -> bool:
                loaded = (await client.get("/health/ready")).json()["loaded"]
                return bool(loaded.get(model) == second.build_id)

            await until(troubled)
            assert "not the one that the builds table has" in ready["troubles"][model]
            assert refused("s3") > before
            reply = await client.post(path_of(model, "search"), json={"product_id": "p3"})
            assert reply.json()["index"]["build_id"] == first.build_id
            await mend(local.objects, true)
            await until(recovered)
    # Another API of this process may have begun its download before, and then misses other files.
    reasons = [
        line["reason"]
        for line in lines
        if line["event"] == "index version refused"
        and (line["build_id"], line["where"]) == (second.build_id, "s3")
        and line["file"] == MANIFEST
    ]
    assert reasons
    assert all("builds table" in reason for reason in reasons)


async def test_a_forged_version_is_not_promoted(service: Service) -> None:
    """Nor does the matrix's address lead to a file that is another one."""
    client, resources, model = service.client, service.resources, "m-forged-promotion"
    await resources.embedding_service.store_batch(
        model, [(f"p{row}", vector(row)) for row in range(20)]
    )
    builds = []
    for _ in range(2):
        asked = await resources.build_service.request_automatic(model)
        builds.append(await published(resources, model, asked.build_id))
    true = await forge(resources.objects, VersionRecord.of(builds[0]).prefix)
    promote = path_of(model, "promote")
    reply = await client.post(promote, json={"build_id": builds[0].build_id})
    problem = assert_problem(reply, 409, "not-promotable")
    assert "builds table" in problem["detail"]
    await mend(resources.objects, true)
    reply = await client.post(promote, json={"build_id": builds[0].build_id})
    assert reply.status_code == 200, reply.text


async def test_no_address_is_given_of_a_forged_matrix(service: Service) -> None:
    """Neither of one of the same size, nor of one that is gone; the answer says what to do."""
    client, resources, matrix = service.client, service.resources, path_of(MODEL, "matrix")
    model = await resources.models.get_model(MODEL)
    build = await resources.builds.get_build(model.current_build_id or "")
    key = VersionRecord.of(build).prefix + PARQUET
    whole = await resources.objects.get_bytes(key, 1 << 24)
    assert (await client.get(matrix)).status_code == 200
    before = refused("s3")
    await replace_object(resources.objects, key, whole[::-1])
    problem = assert_problem(await client.get(matrix), 503)
    assert f"k9 rebuild {MODEL}" in problem["detail"]
    assert refused("s3") == before + 1
    await resources.objects.delete([key])
    assert_problem(await client.get(matrix), 503)
    await resources.objects.put(key, whole)
    assert (await client.get(matrix)).status_code == 200


async def test_a_forged_copy_without_dynamodb(
    local: Resources, service: Service, tmp_path: Path
) -> None:
    """It is held to what the table said; one that this disk knows nothing of, once it answers."""
    model = await local.models.get_model(MODEL)
    build = await local.builds.get_build(model.current_build_id or "")
    record = VersionRecord.of(build)
    directory, manifest = await ensure(local.versions, record)
    assert await local.versions.remembered(model) == record
    forged(directory, manifest)
    before = refused("cache")
    assert await local.versions.cached(await local.versions.remembered(model)) is None
    assert refused("cache") == before + 1
    directory, manifest = await ensure(local.versions, record)
    (directory / "record.json").unlink()  # as an earlier release left it
    other = forged(directory, manifest)
    unread = await local.versions.remembered(model)
    assert (unread.prefix, unread.manifest) == ("", None)
    assert await local.versions.cached(unread) == (directory, other)
    assert not record.describes(other)
    assert await local.versions.cached(record) is None
    assert (await ensure(local.versions, record))[1] == manifest
