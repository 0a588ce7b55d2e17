"""Backup, wipe, restore: the same again, byte for byte; and what a restore must never do."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from core.dynamo import tables
from core.dynamo.wire import AttributeValue, Item, item_of
from core.errors import TableMissing, Unavailable
from core.models import Build, BuildParameters, Model, now, timestamp
from core.resources import Resources, open_resources
from core.settings import Settings
from deploy.aws.tables import describe_tables, read_tag
from deploy.data import bulk
from deploy.data import restore as restore_module
from deploy.data.archive import MANIFEST
from deploy.data.backup import back_up
from deploy.data.bulk import delete_batch, put_batch, scan_segment
from deploy.data.pitr import restore_to_time
from deploy.data.restore import TAG, restore
from deploy.errors import CommandError
from tests.e2e.commands import NO_REDIS, kill, run_k9, start_k9
from tests.emulators import create_tables, settings_for

Contents = dict[str, dict[bytes, bytes]]

ODD: dict[str, Any] = {
    "empty": {"S": ""},
    "text": {"S": "é\u0000\n𝄞"},
    "whole": {"N": "12345678901234567890123456789012345678"},
    "small": {"N": "-1E-130"},
    "large": {"N": "9.9999999999999999999999999999999999999E+125"},
    "fraction": {"N": "0.1"},
    "binary": {"B": bytes(range(256))},
    "no_bytes": {"B": b""},
    "yes": {"BOOL": True},
    "no": {"BOOL": False},
    "nothing": {"NULL": True},
    "map": {"M": {"x": {"S": ""}, "a.b": {"L": [{"L": []}, {"N": "7"}, {"B": b"\xff"}]}}},
    "list": {"L": [{"S": ""}, {"NULL": True}]},
    "texts": {"SS": ["a", "é", " "]},
    "numbers": {"NS": ["1", "-2.5", "12345678901234567890"]},
    "binaries": {"BS": [b"\x00", b"\xff\xfe"]},
}


async def _fill(resources: Resources, rows: int = 60) -> Build:
    """Rows of every table, among them a build that runs; that build."""
    settings = resources.settings
    vectors = np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)
    await resources.embedding_service.store_batch(
        "m1", [(f"p/{n} é", vectors[n]) for n in range(rows)]
    )
    await resources.embedding_service.delete_embedding("m1", "p/0 é")
    await resources.embedding_service.store_embedding("m2", "gone", vectors[0])
    await resources.embedding_service.delete_embedding("m2", "gone")
    for number in range(30):
        await resources.user_service.create(
            f"u{number}", {"name": "N"}, b'{"a": 1e-300, "": [1.0]}'
        )
        await resources.report_service.create(f"u{number}", {"title": "T", "favorites": ["b", "a"]})
    await resources.idempotency.begin("user/u1", "key", "print")
    for table in ("users", "idempotency"):
        key = {"users": ("user_id",), "idempotency": ("caller", "key")}[table]
        odd = [{**ODD, **{name: {"S": f"odd-{n}"} for name in key}} for n in range(20)]
        await put_batch(resources.dynamo, settings.table(table), [item_of(item) for item in odd])
    first = await resources.build_service.request("m1", BuildParameters(matrix_k=7, force=True))
    claimed = await resources.builds.claim(first.build_id, 0)
    model = await resources.models.get_model("m1")
    await resources.promotions.publish(claimed, model, {"epoch": 0})
    second = await resources.build_service.request("m1", BuildParameters())
    return await resources.builds.claim(second.build_id, 0)


def _key(table: tables.Table, item: Item) -> bytes:
    return msgspec.json.encode([item[name] for name in table.key.attributes])


async def _contents(resources: Resources) -> Contents:
    """Every item of every table, as bytes. A set has no order."""

    def text(item: Item) -> bytes:
        ordered = {
            name: AttributeValue(SS=sorted(value.SS))
            if value.SS
            else AttributeValue(NS=sorted(value.NS))
            if value.NS
            else AttributeValue(BS=sorted(value.BS))
            if value.BS
            else value
            for name, value in item.items()
        }
        return msgspec.json.encode(ordered, order="deterministic")

    found: Contents = {}
    for table in tables.ALL:
        name = resources.settings.table(table.name)
        found[table.name] = {
            _key(table, item): text(item)
            async for page in scan_segment(resources.dynamo, name, 0, 1)
            for item in page
        }
    return found


async def _wipe(resources: Resources) -> None:
    for table in tables.ALL:
        name = resources.settings.table(table.name)
        async for page in scan_segment(resources.dynamo, name, 0, 1):
            for start in range(0, len(page), 25):
                await delete_batch(resources.dynamo, name, table.key, page[start : start + 25])


@pytest.fixture
async def resources(emulator: Settings) -> AsyncIterator[Resources]:
    """Tables of a test's own, on each emulator, and no Redis: the tables are the truth."""
    made = await create_tables(settings_for(emulator.aws.endpoint_url or ""))
    nowhere = msgspec.structs.replace(made, redis_url=NO_REDIS)
    async with open_resources(nowhere) as opened:
        yield opened


@pytest.fixture
async def one(ministack: str) -> AsyncIterator[Resources]:
    """The same on one emulator, for what does not depend on it."""
    made = await create_tables(settings_for(ministack))
    nowhere = msgspec.structs.replace(made, redis_url=NO_REDIS)
    async with open_resources(nowhere) as opened:
        yield opened


_EXEMPT = ("models", "builds")
"""Tables in which a restore changes some attributes, on purpose."""


async def test_everything_comes_back_byte_for_byte(resources: Resources, tmp_path: Path) -> None:
    """All attribute types, tombstones, pending keys; then new epochs, no open build but one new."""
    running = await _fill(resources)
    before = await _contents(resources)
    ended = await resources.builds.get_build(
        (await resources.models.get_model("m1")).current_build_id or ""
    )
    manifest = await back_up(resources.dynamo, resources.settings, tmp_path / "b")
    assert {name: entry.items for name, entry in manifest.tables.items()} == {
        name: len(items) for name, items in before.items()
    }
    await _wipe(resources)
    began = timestamp(now())
    restored = await restore(resources, tmp_path / "b")
    after = await _contents(resources)

    for table in set(before) - set(_EXEMPT):
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
    before = await _contents(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    await _wipe(one)
    await restore(one, tmp_path / "b")
    assert await _contents(one) == before
    assert len(before["users"]) == 1


async def test_full_tables_are_refused_and_replaced_only_by_force(
    one: Resources, tmp_path: Path
) -> None:
    """Refused with nothing changed; by force with all that is not in the backup gone."""
    await _fill(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    first = await restore(one, tmp_path / "b", force=True)
    epoch = (await one.models.get_model("m1")).epoch
    assert first.emptied > 0
    await one.embedding_service.store_embedding("m1", "later", np.ones(8, np.float32))
    await one.embedding_service.store_embedding("m9", "later", np.ones(3, np.float32))
    before = await _contents(one)
    with pytest.raises(CommandError, match=r"not empty: .*--force"):
        await restore(one, tmp_path / "b")
    assert await _contents(one) == before
    await restore(one, tmp_path / "b", force=True)
    after = await _contents(one)
    assert len(after["embeddings"]) == len(before["embeddings"]) - 2
    assert [model.model_version for model in await one.models.list_models()] == ["m1", "m2"]
    assert (await one.models.get_model("m1")).epoch > epoch


async def test_a_damaged_backup_writes_nothing(one: Resources, tmp_path: Path) -> None:
    """Not even into tables before the damaged one, and not with --force."""
    await _fill(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    await _wipe(one)
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
    assert not any((await _contents(one)).values())


async def test_an_interrupted_restore_goes_on(
    one: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same backup without --force, another one not; and afterwards no tag is left."""
    await _fill(one)
    before = await _contents(one)
    await back_up(one.dynamo, one.settings, tmp_path / "b")
    await back_up(one.dynamo, one.settings, tmp_path / "other")
    await _wipe(one)
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
    assert any((await _contents(one)).values())
    assert not (await _contents(one))["models"]  # nobody can search or build in between
    with pytest.raises(CommandError, match="interrupted restore of another backup"):
        await restore(one, tmp_path / "other")
    said: list[str] = []
    await restore(one, tmp_path / "b", message=said.append)
    assert said == ["continuing an interrupted restore of this backup"]
    after = await _contents(one)
    assert {t: after[t] for t in after if t not in _EXEMPT} == {
        t: before[t] for t in before if t not in _EXEMPT
    }
    assert await read_tag(one.settings, tables.MODELS, TAG) is None
    with pytest.raises(CommandError, match="not empty"):
        await restore(one, tmp_path / "b")


async def test_a_backup_goes_into_another_environment(one: Resources, tmp_path: Path) -> None:
    """Which has its own tables; without them, both commands say what makes them."""
    await _fill(one)
    before = await _contents(one)
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
        assert (await _contents(target))["users"] == before["users"]


async def test_a_point_in_time_becomes_an_environment(resources: Resources) -> None:
    """New tables with all safeguards, new epochs and a build; the old ones are untouched.

    Both emulators bring back the rows of now, whatever the time.
    """
    running = await _fill(resources)
    before = await _contents(resources)
    name = f"{resources.settings.environment[:20]}-then"
    moment = now() - timedelta(hours=1)
    recovered = await restore_to_time(resources.settings, moment, name)
    assert [entry.outcome for entry in recovered.builds] == ["requested", "empty"]
    assert await _contents(resources) == before
    target = msgspec.structs.replace(resources.settings, environment=name)
    described = await describe_tables(target)
    assert {table.status for table in described} == {"ACTIVE"}
    assert all(table.recovery for table in described)
    assert described[-1].ttl_attribute == "expires_at"
    async with open_resources(target) as restored:
        after = await _contents(restored)
        assert {t: after[t] for t in after if t not in _EXEMPT} == {
            t: before[t] for t in before if t not in _EXEMPT
        }
        model = await restored.models.get_model("m1")
        assert model.epoch > (await resources.models.get_model("m1")).epoch
        assert model.current_build_id is None
        assert (await restored.builds.get_build(running.build_id)).status == "cancelled"
        (asked,) = await restored.builds.list_open()
        assert asked.build_id == model.open_build_id
    assert (await restore_to_time(resources.settings, moment, name)).already
    with pytest.raises(CommandError, match="is not a restore as of that time"):
        await restore_to_time(resources.settings, moment - timedelta(hours=2), name)


async def test_a_table_without_recovery_is_said(ministack: str) -> None:
    """Before anything is made."""
    with pytest.raises(CommandError, match="does not exist"):
        await restore_to_time(settings_for(ministack), now(), "other")


async def test_the_commands_say_what_they_did(one: Resources, tmp_path: Path) -> None:
    """Or in one line why they did not."""
    await _fill(one)
    settings = one.settings
    status, out, error = await run_k9(settings, tmp_path, "backup", "b")
    assert (status, error) == (0, "")
    assert "items of 6 tables" in out
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
    await _fill(one, rows=600)
    process = await start_k9(one.settings, tmp_path, "backup", "b")
    async with asyncio.timeout(60):
        while not list((tmp_path / "b").glob("embeddings.*")):  # noqa: ASYNC110 - its files
            await asyncio.sleep(0.002)
    await kill(process)
    status, _, error = await run_k9(one.settings, tmp_path, "restore", "b", "--force")
    assert (status, "interrupted backup" in error) == (1, True)
    status, out, _ = await run_k9(one.settings, tmp_path, "backup", "b")
    assert status == 0
    assert "items of 6 tables" in out


def test_what_is_changed_on_purpose_reads_as_a_model_and_a_build() -> None:
    """The attributes that a restore sets are fields of the records."""
    assert {"epoch", "current_build_id", "open_build_id", "current_fence", "pinned"} <= set(
        Model.__struct_fields__
    )
    assert {"status", "ended_at", "error", "lease_until_ms"} <= set(Build.__struct_fields__)
