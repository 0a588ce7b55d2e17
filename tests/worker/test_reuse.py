"""A build of which only attributes have changed keeps the index and the matrix, and no other."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest

from core.aws_calls import count_requests
from core.index.files import COLUMNS, IDS, REPORT, VECTORS
from core.index.version import mapped_files, verify_files
from core.models import Build, BuildParameters
from core.repositories.attributes import AttributeRepository
from core.resources import Resources
from core.settings import Settings
from core.versions import VersionRecord
from tests.worker.forgery import replace_object
from tests.worker.processes import children_of, running, until
from tests.worker.test_attributes import columns_of, digests, served, stored_with_attributes
from tests.worker.test_history import verified
from tests.worker.work import build
from worker.building.protocol import BuildSpec

ONES = np.ones(8, dtype=np.float32)
Act = Callable[[Resources, str], Awaitable[Any]]


async def patch(resources: Resources, model_version: str, number: float = 1) -> None:
    """Changes the attributes of one product."""
    await resources.embedding_service.patch_attributes(model_version, "p00007", {"price": number})


def reused(ended: Build) -> str | None:
    """The build whose index and matrix a published build has."""
    assert (ended.status, ended.error) == ("published", None)
    assert ended.manifest is not None
    found: str | None = ended.manifest["reused_build_id"]
    return found


async def test_only_the_columns_are_built(resources: Resources, model_version: str) -> None:
    """Every other file is the same, also the next time; it can be verified, and tells all this."""
    own = await stored_with_attributes(resources, model_version, 200)
    first = await build(resources, model_version)
    assert reused(first) is None
    ended = first
    for number in (1, 2):
        await patch(resources, model_version, number)
        ended = await build(resources, model_version)
        assert reused(ended) == first.build_id
        own["p00007"] = own["p00007"] | {"price": number}
        assert await columns_of(resources, model_version) == own
        before, after = digests(first), digests(ended)
        assert {name for name in before if before[name] != after[name]} == {COLUMNS}
        assert first.manifest is not None
        assert ended.manifest is not None
        for name in ("counts", "index", "recall", "matrix", "software"):
            assert ended.manifest[name] == first.manifest[name]
        assert ended.manifest["watermark"] > first.manifest["watermark"]
        assert set(ended.manifest["stages"]) == {"pull", "files"}
        assert (ended.manifest["changes"]["overlap"], ended.manifest["changes"]["common"]) == (
            1.0,
            200,
        )
    _, found = await verified(resources, ended)
    assert found is not None
    assert set(found.compared) == set(digests(ended))
    assert (found.differences, found.rows_changed) == ((), 0)


async def test_attributes_that_come_and_go_reuse_a_build_without(
    resources: Resources, model_version: str
) -> None:
    """The file appears with the first attributes, and is gone once the last are removed."""
    await stored_with_attributes(resources, model_version, 1)
    await resources.embedding_service.store_embedding(model_version, "p00007", ONES)
    await resources.embedding_service.store_embedding(model_version, "p00000", ONES, attributes={})
    bare = await build(resources, model_version)
    assert COLUMNS not in digests(bare)
    await patch(resources, model_version)
    ended = await build(resources, model_version)
    assert reused(ended) == bare.build_id
    assert await columns_of(resources, model_version) == {"p00000": {}, "p00007": {"price": 1}}
    await resources.embedding_service.patch_attributes(model_version, "p00007", {"price": None})
    cleared = await build(resources, model_version)
    assert reused(cleared) == bare.build_id
    assert digests(cleared) == digests(bare)


def spec_of(child: int) -> BuildSpec:
    """What a build process was asked for."""
    path = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[-2]
    return msgspec.json.decode(Path(path.decode()).read_bytes(), type=BuildSpec)


async def test_a_killed_workers_columns_are_built_by_the_next(
    resources: Resources, model_version: str, settings: Settings
) -> None:
    """After SIGKILL, in whatever state its files were; every file of the version is whole."""
    own = await stored_with_attributes(resources, model_version, 60)
    first = await build(resources, model_version)
    await patch(resources, model_version)
    own["p00007"] = own["p00007"] | {"price": 1}
    async with running(settings) as killed:
        asked = await resources.build_service.request(model_version, BuildParameters())
        async with asyncio.timeout(60):
            while not (found := children_of(settings.building.work_dir)):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.01)
        os.kill(found[0], signal.SIGSTOP)
        assert spec_of(found[0]).columns_only
        killed.kill()
        await killed.wait()
        os.kill(found[0], signal.SIGCONT)  # it ends by itself, without the worker
    async with running(settings):
        ended = await until(resources, asked.build_id, lambda found: not found.open)
    assert (reused(ended), ended.fence) == (first.build_id, 2)
    assert await columns_of(resources, model_version) == own
    assert {**digests(ended), COLUMNS: ""} == {**digests(first), COLUMNS: ""}
    with TemporaryDirectory() as directory:  # fetching verifies each
        names = tuple(digests(ended))
        await resources.versions.fetch(VersionRecord.of(ended), Path(directory) / "copy", names)
    assert not children_of(settings.building.work_dir)


async def test_what_the_cache_has_is_not_downloaded_again(
    resources: Resources, model_version: str
) -> None:
    """Only the columns are, unless a file of the version before is damaged or gone."""
    own = await stored_with_attributes(resources, model_version, 60)
    await build(resources, model_version)
    _, before = await served(resources, model_version)
    for number, (damage, requests) in enumerate([(None, 2), (VECTORS, 3), (IDS, 3)]):
        await patch(resources, model_version, number)
        assert reused(await build(resources, model_version)) is not None
        if damage == VECTORS:
            (before / VECTORS).write_bytes(bytes((before / VECTORS).stat().st_size))
        elif damage == IDS:
            (before / IDS).unlink()
        with count_requests() as count:
            version, directory = await served(resources, model_version)
        assert count.requests == requests  # the manifest and the columns, and what was damaged
        verify_files(directory, version.manifest, mapped_files(version.manifest))
        assert version.columns is not None
        assert version.columns.attributes(7) == own["p00007"] | {"price": number}
        await asyncio.to_thread(shutil.rmtree, before)
        before = directory


async def put(resources: Resources, model_version: str) -> None:
    """Another vector."""
    await resources.embedding_service.store_embedding(model_version, "p00003", ONES)


async def add(resources: Resources, model_version: str) -> None:
    """A new product."""
    await resources.embedding_service.store_embedding(
        model_version, "new", ONES, attributes={"a": 1}
    )


async def delete(resources: Resources, model_version: str) -> None:
    """A product less."""
    await resources.embedding_service.delete_embedding(model_version, "p00003")


async def lose(resources: Resources, model_version: str) -> None:
    """A file of the current version is gone."""
    model = await resources.models.get_model(model_version)
    current = await resources.builds.get_build(model.current_build_id or "")
    await resources.objects.delete([(current.prefix or "") + VECTORS])


async def damage(resources: Resources, model_version: str) -> None:
    """A file of the current version has other bytes."""
    model = await resources.models.get_model(model_version)
    current = await resources.builds.get_build(model.current_build_id or "")
    await replace_object(resources.objects, (current.prefix or "") + REPORT, b"{}")


@pytest.mark.parametrize("act", [put, add, delete, lose, damage])
async def test_whatever_else_has_changed_is_built(
    resources: Resources, model_version: str, act: Act
) -> None:
    """A vector, a product more or less, or a lost file; with changed attributes beside it."""
    own = await stored_with_attributes(resources, model_version, 60)
    await build(resources, model_version)
    await patch(resources, model_version)
    own["p00007"] = own["p00007"] | {"price": 1}
    await act(resources, model_version)
    ended = await build(resources, model_version)
    assert reused(ended) is None
    if act is add:
        own["new"] = {"a": 1}
    elif act is delete:
        del own["p00003"]
    assert await columns_of(resources, model_version) == own
    version, _ = await served(resources, model_version)
    row = version.ids.row_of("p00003")
    same = row is not None and np.allclose(version.searcher.rows[row], ONES / np.sqrt(8))
    assert same is (act is put)


async def test_a_build_of_nothing_new_or_by_other_means_is_whole(
    resources: Resources, model_version: str
) -> None:
    """Rows without any change, as `k9 rebuild` needs it; other parameters; force."""
    await stored_with_attributes(resources, model_version, 60)
    first = await build(resources, model_version)
    again = await build(resources, model_version)
    assert reused(again) is None
    assert digests(again) == digests(first)
    for parameters in (BuildParameters(matrix_k=4), BuildParameters(matrix_k=4, force=True)):
        await patch(resources, model_version, parameters.force + 1)
        assert reused(await build(resources, model_version, parameters)) is None
    await patch(resources, model_version, 3)
    assert reused(await build(resources, model_version, BuildParameters(matrix_k=4))) is not None


async def test_another_release_builds_all(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would build of the same rows may be better."""
    await stored_with_attributes(resources, model_version, 60)
    await build(resources, model_version)
    await patch(resources, model_version)
    monkeypatch.setattr("worker.building.reuse.__version__", "99.0")
    assert reused(await build(resources, model_version)) is None


@pytest.mark.parametrize("seen", [True, False])
async def test_a_vector_that_changes_meanwhile_is_not_lost(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch, *, seen: bool
) -> None:
    """It is built where the build sees it, and else has a time after the version's watermark."""
    await stored_with_attributes(resources, model_version, 60)
    first = await build(resources, model_version)
    await patch(resources, model_version)
    changed_at: list[str] = []
    kind: Any = type(resources.embeddings) if seen else AttributeRepository
    name = "get_embeddings_by_model" if seen else "changed_since"
    method = getattr(kind, name)

    async def meanwhile(self: Any, *arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
        if not changed_at:
            stored = await resources.embedding_service.store_embedding(
                model_version, "p00003", ONES
            )
            changed_at.append(stored.updated_at)
        async for page in method(self, *arguments, **options):
            yield page

    monkeypatch.setattr(kind, name, meanwhile)
    ended = await build(resources, model_version)
    assert changed_at
    assert reused(ended) == (None if seen else first.build_id)
    version, _ = await served(resources, model_version)
    row = version.ids.row_of("p00003")
    same = np.allclose(version.searcher.rows[row], ONES / np.sqrt(8))
    assert same or version.manifest.watermark < changed_at[0]
    assert same is seen
    if not seen:
        await patch(resources, model_version, 2)
        assert reused(await build(resources, model_version)) is None
        version, _ = await served(resources, model_version)
        assert np.allclose(version.searcher.rows[row], ONES / np.sqrt(8))


async def test_a_change_that_an_earlier_build_did_not_see_is_built(
    resources: Resources, model_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table's index lags: a vector from before the last pull may be new to this one."""
    await stored_with_attributes(resources, model_version, 60)
    every = type(resources.embeddings).get_embeddings_by_model
    await put(resources, model_version)

    async def lagging(self: Any, *arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
        async for page in every(self, *arguments, **options):
            yield [row for row in page if row.product_id != "p00003"]

    with monkeypatch.context() as blind:
        blind.setattr(type(resources.embeddings), "get_embeddings_by_model", lagging)
        first = await build(resources, model_version)
    assert first.manifest is not None
    assert first.manifest["counts"]["rows"] == 59
    await patch(resources, model_version)
    ended = await build(resources, model_version)
    assert reused(ended) is None
    assert ended.manifest is not None
    assert ended.manifest["counts"]["rows"] == 60


async def test_a_version_of_a_worker_without_attributes_gets_them(
    resources: Resources, model_version: str
) -> None:
    """One published while an upgrade ran has no columns: the next build adds them."""
    own = await stored_with_attributes(resources, model_version, 60)
    first = await build(resources, model_version)
    manifest = dict(first.manifest or {})
    manifest["files"] = {k: v for k, v in manifest["files"].items() if k != COLUMNS}
    for name in ("rows_with_attributes", "recent_attributes", "reused_build_id"):
        del manifest[name]
    raw = msgspec.json.encode(manifest)
    await replace_object(resources.objects, (first.prefix or "") + "manifest.json", raw)
    await resources.dynamo.call(
        "update_item",
        TableName=resources.settings.table("builds"),
        Key={"build_id": {"S": first.build_id}},
        UpdateExpression="SET manifest = :m",
        ExpressionAttributeValues={":m": {"S": raw.decode()}},
    )
    ended = await build(resources, model_version)
    assert reused(ended) == first.build_id
    assert await columns_of(resources, model_version) == own
