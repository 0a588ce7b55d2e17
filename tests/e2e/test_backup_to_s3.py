"""Backups in a bucket: equal data at the end, one name after another, and no half of one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aioboto3
import pytest

from core.dynamo.client import Dynamo
from core.dynamo.wire import Item
from core.errors import Unavailable
from core.resources import Resources
from deploy.data import backup as backup_module
from deploy.data.archive import MANIFEST
from deploy.data.backup import back_up
from deploy.data.bulk import scan_segment
from deploy.data.places import S3Location, parse_place
from deploy.data.restore import restore
from deploy.errors import CommandError
from tests.e2e.commands import run_k9
from tests.e2e.tables import EXEMPT, contents, fill, wipe

BUCKET = "k9-backups-of-tests"


@pytest.fixture
async def place(one: Resources) -> S3Location:
    """A prefix of this test's own in a bucket that is not the environment's."""
    url = one.settings.aws.endpoint_url
    async with aioboto3.Session().client("s3", endpoint_url=url) as client:
        await client.create_bucket(Bucket=BUCKET)
    return S3Location(BUCKET, f"nightly/{one.settings.environment}")


async def _keys(one: Resources) -> list[str]:
    url = one.settings.aws.endpoint_url
    prefix = f"nightly/{one.settings.environment}"
    async with aioboto3.Session().client("s3", endpoint_url=url) as client:
        reply = await client.list_objects_v2(Bucket=BUCKET, Prefix=prefix)
    return [entry["Key"] for entry in reply.get("Contents", [])]


async def test_a_backup_in_a_bucket_comes_back_byte_for_byte(
    one: Resources, place: S3Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In files of bounded length, and with nothing left on this machine's disk."""
    await fill(one, rows=300)
    before = await contents(one)
    monkeypatch.setattr(backup_module, "_FILE_BYTES_MAX", 1)  # a file a page
    made = await back_up(one.dynamo, one.settings, place)
    assert str(made.place).startswith(f"{place}/{one.settings.environment}-")
    assert {name: table.items for name, table in made.manifest.tables.items()} == {
        name: len(items) for name, items in before.items()
    }
    await wipe(one)
    await restore(one, made.place)
    after = await contents(one)
    assert {name: after[name] for name in after if name not in EXEMPT} == {
        name: before[name] for name in before if name not in EXEMPT
    }


async def test_each_backup_has_a_name_of_its_own(one: Resources, place: S3Location) -> None:
    """Two at once do not meet; a restore from their prefix names one instead of choosing it."""
    await fill(one)
    made = await asyncio.gather(*(back_up(one.dynamo, one.settings, place) for _ in range(2)))
    assert len({str(each.place) for each in made}) == 2
    with pytest.raises(CommandError, match=r"has 2 backups; name one, such as s3://"):
        await restore(one, place, force=True)


async def test_a_backup_without_its_manifest_is_none(
    one: Resources, place: S3Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was interrupted is not restored, and the next one succeeds beside what it left."""
    await fill(one)
    users = one.settings.table("users")

    def ends(dynamo: Dynamo, name: str, *rest: int) -> AsyncIterator[list[Item]]:
        if name == users:
            raise Unavailable("gone")
        return scan_segment(dynamo, name, *rest)

    monkeypatch.setattr(backup_module, "scan_segment", ends)
    with pytest.raises(Unavailable, match="gone"):
        await back_up(one.dynamo, one.settings, place)
    monkeypatch.undo()
    keys = await _keys(one)
    assert any("/embeddings." in key for key in keys)
    assert not any(key.endswith(MANIFEST) for key in keys)
    left = keys[0].rpartition("/")[0]
    status, _, error = await run_k9(
        one.settings, tmp_path, "restore", f"s3://{BUCKET}/{left}", "--force"
    )
    assert (status, "has an interrupted backup" in error) == (1, True)
    before = await contents(one)
    status, out, error = await run_k9(one.settings, tmp_path, "backup", str(place))
    assert (status, error) == (0, "")
    name = out.partition(f"{place}/")[2].split()[0]
    status, out, error = await run_k9(
        one.settings, tmp_path, "restore", f"{place}/{name}", "--force"
    )
    assert (status, error) == (0, "")
    assert (await contents(one))["embeddings"] == before["embeddings"]


async def test_a_damaged_object_writes_nothing(one: Resources, place: S3Location) -> None:
    """Found by its checksum before any table is touched, as is one that is gone."""
    await fill(one)
    made = await back_up(one.dynamo, one.settings, place)
    before = await contents(one)
    assert isinstance(made.place, S3Location)
    file = made.manifest.tables["users"].files[-1]
    key = made.place.key(file.name)
    url = one.settings.aws.endpoint_url
    async with aioboto3.Session().client("s3", endpoint_url=url) as client:
        await client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * file.bytes)
        with pytest.raises(CommandError, match=f"{file.name}: is damaged"):
            await restore(one, made.place, force=True)
        await client.delete_object(Bucket=BUCKET, Key=key)
        with pytest.raises(CommandError, match=f"{file.name}: is missing"):
            await restore(one, made.place, force=True)
        await client.put_object(Bucket=BUCKET, Key=made.place.key(MANIFEST), Body=b"{}")
        with pytest.raises(CommandError, match="is not valid"):
            await restore(one, made.place, force=True)
    assert await contents(one) == before


async def test_a_prefix_without_backups_is_said(one: Resources, place: S3Location) -> None:
    """And so is a bucket that is not there."""
    with pytest.raises(CommandError, match="has no backup"):
        await restore(one, place)
    nowhere = parse_place("s3://no-such-bucket-of-tests/x")
    with pytest.raises(Unavailable, match="S3 has no bucket no-such-bucket-of-tests"):
        await back_up(one.dynamo, one.settings, nowhere)
