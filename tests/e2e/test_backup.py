"""Backup, wipe, restore: the same again, byte for byte; and what a restore must never do."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from core.dynamo import tables
from core.dynamo.wire import item_of
from core.errors import TableMissing, Unavailable
from core.models import Build, Model, now, timestamp
from core.resources import Resources, open_resources
from deploy.aws.tables import describe_tables, read_tag
from deploy.data import bulk, pitr
from deploy.data import restore as restore_module
from deploy.data.archive import MANIFEST
from deploy.data.backup import back_up
from deploy.data.bulk import put_batch
from deploy.data.pitr import restore_to_time
from deploy.data.restore import TAG, restore
from deploy.errors import CommandError
from tests.e2e.commands import NO_REDIS, kill, run_k9, start_k9
from tests.e2e.tables import EXEMPT, contents, fill, wipe
from tests.emulators import create_tables, settings_for


async def test_everything_comes_back_byte_for_byte(resources: Resources, tmp_path: Path) -> None:
    """All attribute types, tombstones, pending keys; then new epochs, no open build but one new."""
    running = await fill(resources)
    before = await contents(resources)
    ended = await resources.builds.get_build(
        (await resources.models.get_model("m1")).current_build_id or ""
    )
    made = await back_up(resources.dynamo, resources.settings, tmp_path / "b")
    manifest = made.manifest
    assert {name: entry.items for name, entry in manifest.tables.items()} == {
        name: len(items) for name, items in before.items()
    }
    await wipe(resources)
    began = timestamp(now())
    restored = await restore(resources, tmp_path / "b")
    after = await contents(resources)

    for table in set(before) - set(EXEMPT):
        assert after[table] == before[table], table
    assert after["models"].keys() == before["models"].keys()
    models = {model.model_version: model for model in await resources.models.list_models()}
    assert [entry.outcome for entry in restored.builds] == ["requested", "empty"]
    assert models["m1"].epoch > 0
    assert models["m2"].epoch > 0
    assert models["m1"].current_build_id is None
    assert models["m2"].open_build_id is None
    assert (models["m1"].dimension, models["m1"].metric) == (8, "cosine")

    assert await resources.builds.get_build(ended.build_id) == ended
    stopped = await resources.builds.get_build(running.build_id)
    assert (stopped.status, stopped.fence) == ("cancelled", running.fence)
    assert (stopped.ended_at or "") >= began
    (asked,) = await resources.builds.list_open()
    assert asked.build_id == models["m1"].open_build_id == restored.builds[0].detail
    assert asked.parameters == ended.parameters.again()  # of the build that was current
    assert len(after["builds"]) == len(before["builds"]) + 1
    await resources.builds.claim(asked.build_id, 0)


async def test_maps_in_maps_come_back(one: Resources, tmp_path: Path) -> None:
    """To DynamoDB's 32 levels, with empty keys and maps, which moto takes for something else."""
    deep: dict[str, Any] = {"M": {}}
    for level in range(30):
        deep = {"L": [deep, {"M": {}}]} if level % 2 else {"M": {"": deep, "M": {"M": {}}}}
    item = item_of({"user_id": {"S": "x"}, "deep": deep})
    await put_batch(one.dynamo, one.settings.table("users"), [item])
    before = await contents(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    await wipe(one)
    await restore(one, tmp_path / "b")
    assert await contents(one) == before
    assert len(before["users"]) == 1


async def test_full_tables_are_refused_and_replaced_only_by_force(
    one: Resources, tmp_path: Path
) -> None:
    """Refused with nothing changed; by force with all that is not in the backup gone."""
    await fill(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    first = await restore(one, tmp_path / "b", force=True)
    epoch = (await one.models.get_model("m1")).epoch
    assert first.emptied > 0
    await one.embedding_service.store_embedding("m1", "later", np.ones(8, np.float32))
    await one.embedding_service.store_embedding("m9", "later", np.ones(3, np.float32))
    before = await contents(one)
    with pytest.raises(CommandError, match=r"not empty: .*--force"):
        await restore(one, tmp_path / "b")
    assert await contents(one) == before
    await restore(one, tmp_path / "b", force=True)
    after = await contents(one)
    assert len(after["embeddings"]) == len(before["embeddings"]) - 2
    assert [model.model_version for model in await one.models.list_models()] == ["m1", "m2"]
    assert (await one.models.get_model("m1")).epoch > epoch


async def test_a_damaged_backup_writes_nothing(one: Resources, tmp_path: Path) -> None:
    """Not even into tables before the damaged one, and not with --force."""
    await fill(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    await wipe(one)
    last = max((tmp_path / "b").glob("users.*"))
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    for force in (False, True):
        with pytest.raises(CommandError, match=f"{last.name}: is damaged"):
            await restore(one, tmp_path / "b", force=force)
    last.unlink()
    with pytest.raises(CommandError, match="is missing"):
        await restore(one, tmp_path / "b")
    (tmp_path / "b" / MANIFEST).unlink()
    with pytest.raises(CommandError, match="has no backup"):
        await restore(one, tmp_path / "b", force=True)
    assert not any((await contents(one)).values())


async def test_an_interrupted_restore_goes_on(
    one: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same backup without --force, another one not; and afterwards no tag is left."""
    await fill(one)
    before = await contents(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    await back_up(one.dynamo, one.settings, tmp_path / "other")
    await wipe(one)
    put, calls = bulk.put_batch, 0

    async def breaks(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Unavailable("gone")
        await put(*arguments)

    monkeypatch.setattr(restore_module, "put_batch", breaks)
    with pytest.raises(Unavailable, match="gone"):
        await restore(one, tmp_path / "b")
    monkeypatch.undo()
    assert any((await contents(one)).values())
    assert not (await contents(one))["models"]  # nobody can search or build in between
    with pytest.raises(CommandError, match="interrupted restore of another backup"):
        await restore(one, tmp_path / "other")
    said: list[str] = []
    await restore(one, tmp_path / "b", message=said.append)
    assert said == ["continuing an interrupted restore of this backup"]
    after = await contents(one)
    assert {t: after[t] for t in after if t not in EXEMPT} == {
        t: before[t] for t in before if t not in EXEMPT
    }
    assert await read_tag(one.settings, tables.MODELS, TAG) is None
    with pytest.raises(CommandError, match="not empty"):
        await restore(one, tmp_path / "b")


async def test_a_restore_that_ends_before_its_builds_goes_on(
    one: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command requests them, without --force."""
    await fill(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    await wipe(one)

    async def ends(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restore_module, "request_builds", ends)
    with pytest.raises(KeyboardInterrupt):
        await restore(one, tmp_path / "b")
    monkeypatch.undo()
    restored = await restore(one, tmp_path / "b")
    assert [each.outcome for each in restored.builds] == ["requested", "empty"]
    assert await read_tag(one.settings, tables.MODELS, TAG) is None


async def test_a_repeated_point_in_time_keeps_the_parameters_of_builds(
    one: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model versions of its first run have no current build any more."""
    await fill(one)
    name = f"{one.settings.environment[:20]}-then"
    moment = now() - timedelta(hours=1)

    async def ends(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pitr, "request_builds", ends)
    with pytest.raises(KeyboardInterrupt):
        await restore_to_time(one.settings, moment, name)
    monkeypatch.undo()

    async def restored_before(*_: Any) -> None:
        """As where DynamoDB describes the tables as that restore, which ministack does not."""

    monkeypatch.setattr(pitr, "restore_tables", restored_before)
    await restore_to_time(one.settings, moment, name)
    async with open_resources(pitr.restored_settings(one.settings, name)) as restored:
        model = await restored.models.get_model("m1")
        build = await restored.builds.get_build(model.open_build_id or "")
    assert build.parameters.matrix_k == 7


async def test_a_backup_goes_into_another_environment(one: Resources, tmp_path: Path) -> None:
    """Which has its own tables; without them, both commands say what makes them."""
    await fill(one)
    before = await contents(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    other = settings_for(one.settings.aws.endpoint_url or "")
    other = msgspec.structs.replace(other, redis_url=NO_REDIS)
    async with open_resources(other) as target:
        with pytest.raises(TableMissing, match="k9 tables create"):
            await restore(target, tmp_path / "b")
        with pytest.raises(TableMissing, match="k9 tables create"):
            await back_up(target.dynamo, other, tmp_path / "none")
        await create_tables(other)
        await restore(target, tmp_path / "b")
        assert (await contents(target))["users"] == before["users"]


async def test_a_point_in_time_becomes_an_environment(resources: Resources) -> None:
    """New tables with all safeguards, new epochs and a build; the old ones are untouched.

    Both emulators bring back the rows of now, whatever the time.
    """
    running = await fill(resources)
    before = await contents(resources)
    name = f"{resources.settings.environment[:20]}-then"
    moment = now() - timedelta(hours=1)
    builds = await restore_to_time(resources.settings, moment, name) or []
    assert [entry.outcome for entry in builds] == ["requested", "empty"]
    assert await contents(resources) == before
    target = msgspec.structs.replace(resources.settings, environment=name)
    described = await describe_tables(target)
    assert {table.status for table in described} == {"ACTIVE"}
    assert all(table.recovery for table in described)
    expiring = [table.ttl_attribute for table in described if table.ttl_attribute]
    assert expiring == ["expires_at"]
    async with open_resources(target) as restored:
        after = await contents(restored)
        assert {t: after[t] for t in after if t not in EXEMPT} == {
            t: before[t] for t in before if t not in EXEMPT
        }
        model = await restored.models.get_model("m1")
        assert model.epoch > (await resources.models.get_model("m1")).epoch
        assert model.current_build_id is None
        assert (await restored.builds.get_build(running.build_id)).status == "cancelled"
        (asked,) = await restored.builds.list_open()
        assert asked.build_id == model.open_build_id
    assert await restore_to_time(resources.settings, moment, name) is None
    with pytest.raises(CommandError, match="is not a restore as of that time"):
        await restore_to_time(resources.settings, moment - timedelta(hours=2), name)


async def test_a_table_without_recovery_is_said(ministack: str) -> None:
    """Before anything is made."""
    with pytest.raises(CommandError, match="does not exist"):
        await restore_to_time(settings_for(ministack), now(), "other")


async def test_the_commands_say_what_they_did(one: Resources, tmp_path: Path) -> None:
    """Or in one line why they did not."""
    await fill(one)
    settings = one.settings
    status, out, error = await run_k9(settings, tmp_path, "backup", "b")
    assert (status, error) == (0, "")
    assert "items of 7 tables" in out
    status, out, error = await run_k9(settings, tmp_path, "backup", "b")
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert "is not empty" in error
    status, out, error = await run_k9(settings, tmp_path, "restore", "b")
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert "--force" in error
    status, out, error = await run_k9(settings, tmp_path, "restore", "b", "--force")
    assert (status, error) == (0, "")
    assert "build of m1 requested: " in out
    assert "no build of m2: it has no rows" in out
    moment = timestamp(now() - timedelta(hours=1))
    status, out, error = await run_k9(
        settings, tmp_path, "restore", "--to-time", moment, "--into", "looked-at"
    )
    assert status == 0, error
    assert "K9_ENVIRONMENT=looked-at" in out
    for wrong in ((), ("b", "--to-time", moment), ("--to-time", moment, "--force")):
        status, out, error = await run_k9(settings, tmp_path, "restore", *wrong)
        assert (status, out, error.count("\n")) == (64, "", 1)


async def test_a_backup_that_is_killed_can_be_made_again(one: Resources, tmp_path: Path) -> None:
    """Into the same directory, which until then is no backup."""
    await fill(one, rows=600)
    process = await start_k9(one.settings, tmp_path, "backup", "b")
    async with asyncio.timeout(60):
        while not list((tmp_path / "b").glob("embeddings.*")):  # noqa: ASYNC110 - its files
            await asyncio.sleep(0.002)
    await kill(process)
    status, _, error = await run_k9(one.settings, tmp_path, "restore", "b", "--force")
    assert (status, "interrupted backup" in error) == (1, True)
    status, out, _ = await run_k9(one.settings, tmp_path, "backup", "b")
    assert status == 0
    assert "items of 7 tables" in out


def test_what_is_changed_on_purpose_reads_as_a_model_and_a_build() -> None:
    """The attributes that a restore sets are fields of the records."""
    assert {"epoch", "current_build_id", "open_build_id", "current_fence", "pinned"} <= set(
        Model.__struct_fields__
    )
    assert {"status", "ended_at", "error", "lease_until_ms"} <= set(Build.__struct_fields__)
