"""`k9 restore --to-time --copy-back`: the current tables become what was restored.

The emulators restore the rows of now. So each test restores first, damages the data after that, and
then copies back: what DynamoDB's own history would add is not shown here.
"""

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import aioboto3
import msgspec
import numpy as np
import pytest
from aiohttp import web

from core.dynamo import tables
from core.dynamo.wire import item_of
from core.errors import Unavailable
from core.models import now, timestamp
from core.resources import Resources, open_resources
from core.settings import Settings
from deploy.aws.tables import read_tag, write_tag
from deploy.aws.write_stop import (
    STATEMENT,
    allow_writes,
    stop_writes,
    with_statement,
    without_statement,
)
from deploy.data import copying
from deploy.data.bulk import delete_batch, put_batch, scan_segment
from deploy.data.copying import copy_back
from deploy.data.pitr import TAG as RESTORED
from deploy.data.pitr import parse_time, restore_to_time, restored_settings
from deploy.data.restore import TAG
from deploy.errors import CommandError
from tests.e2e.commands import run_k9
from tests.e2e.policies import OTHER, Enforcing
from tests.e2e.tables import EXEMPT, Contents, contents, fill


async def _restored(one: Resources) -> Settings:
    """The environment as of now, as tables of another."""
    name = f"{one.settings.environment[:20]}-was"
    await restore_to_time(one.settings, now() - timedelta(hours=1), name, served=False)
    return restored_settings(one.settings, name)


async def _damage(one: Resources) -> None:
    """Deletes, changes and adds rows, and publishes nothing."""
    name = one.settings.table("embeddings")
    pages = [page async for page in scan_segment(one.dynamo, name)]
    await delete_batch(one.dynamo, name, tables.EMBEDDINGS.key, pages[0][:10])
    vector = np.ones(8, np.float32)
    await one.embedding_service.store_embedding("m1", "p/20 é", vector)
    await one.embedding_service.store_embedding("m1", "of-later", vector)
    await one.embedding_service.store_embedding("m9", "of-later", vector)
    users = one.settings.table("users")
    await put_batch(one.dynamo, users, [item_of({"user_id": {"S": "u1"}, "name": {"S": "X"}})])


def _comparable(found: Contents) -> Contents:
    return {name: items for name, items in found.items() if name not in EXEMPT}


async def test_what_differs_is_copied_back_and_nothing_else(one: Resources) -> None:
    """Deleted and changed rows return, later ones go; epochs rise and open builds are cancelled."""
    running = await fill(one)
    before = await contents(one)
    epoch = (await one.models.get_model("m1")).epoch
    source = await _restored(one)
    await _damage(one)
    copied = await copy_back(one, source)
    after = await contents(one)
    assert _comparable(after) == _comparable(before)
    embeddings = copied.tables["embeddings"]
    assert (embeddings.put, embeddings.deleted) == (11, 2)
    assert embeddings.equal == len(before["embeddings"])
    assert copied.tables["users"].put == 1
    assert after["models"].keys() == before["models"].keys()
    assert after["builds"].keys() == before["builds"].keys()
    model = await one.models.get_model("m1")
    assert model.epoch > epoch
    assert (model.current_build_id, model.open_build_id) == (None, None)
    assert (await one.builds.get_build(running.build_id)).status == "cancelled"
    assert await read_tag(one.settings, tables.MODELS, TAG) is not None
    again = await copy_back(one, source)
    assert again.tables["embeddings"].changed == 0


async def test_an_interrupted_copy_goes_on(one: Resources, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same again; until then no other restore may begin."""
    await fill(one)
    before = await contents(one)
    source = await _restored(one)
    await _damage(one)
    calls = 0

    async def breaks(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        raise Unavailable("gone")

    monkeypatch.setattr(copying, "put_batch", breaks)
    with pytest.raises(Unavailable, match="gone"):
        await copy_back(one, source)
    monkeypatch.undo()
    other = msgspec.structs.replace(source, environment="another")
    with pytest.raises(CommandError, match="interrupted restore of something else"):
        await copy_back(one, other)
    said: list[str] = []
    await copy_back(one, source, message=said.append)
    assert said == ["continuing an interrupted restore"]
    assert _comparable(await contents(one)) == _comparable(before)


async def test_a_writer_that_goes_on_is_noticed(
    one: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data is verified after it was copied; the error says what to stop."""
    await fill(one)
    source = await _restored(one)
    users = one.settings.table("users")

    async def writing(dynamo: object, name: str, *rest: object, **options: object) -> object:
        item = item_of({"user_id": {"S": "u1"}, "name": {"S": timestamp(now())}})
        await put_batch(one.dynamo, users, [item])
        async for page in scan_segment(dynamo, name, *rest, **options):  # type: ignore[arg-type]
            yield page

    monkeypatch.setattr(copying, "scan_segment", writing)
    with pytest.raises(CommandError, match="something else still writes"):
        await copy_back(one, source)
    assert await read_tag(one.settings, tables.MODELS, TAG) is not None


async def test_what_was_restored_to_be_served_is_not_copied(one: Resources) -> None:
    """Its epochs and builds are its own by then."""
    await fill(one)
    name = f"{one.settings.environment[:20]}-new"
    moment = now() - timedelta(hours=1)
    await restore_to_time(one.settings, moment, name)
    with pytest.raises(CommandError, match="was restored to be served"):
        await restore_to_time(one.settings, moment, name, served=False)


async def test_a_restore_of_another_environment_is_not_copied(one: Resources) -> None:
    """At the same time and under the same name: its rows would replace all that is here."""
    was = await _restored(one)
    other = msgspec.structs.replace(one.settings, environment="another")
    tag = await read_tag(was, tables.MODELS, RESTORED)
    assert tag is not None
    moment = parse_time(tag.partition(" ")[0])
    with pytest.raises(CommandError, match="was restored of another time or environment"):
        await restore_to_time(other, moment, was.environment, served=False)
    again = await restore_to_time(one.settings, moment, was.environment, served=False)
    assert again is None


async def test_a_policy_that_is_not_enforced_stops_nothing(one: Resources) -> None:
    """As on an emulator: the command says so, and leaves no policy behind."""
    with pytest.raises(CommandError, match="--writes-stopped"):
        await stop_writes(one.settings, in_effect_s=0.5)
    url = one.settings.aws.endpoint_url
    async with aioboto3.Session().client("dynamodb", endpoint_url=url) as client:
        table = await client.describe_table(TableName=one.settings.table("users"))
        with pytest.raises(client.exceptions.PolicyNotFoundException):
            await client.get_resource_policy(ResourceArn=table["Table"]["TableArn"])


async def test_an_enforced_policy_stops_everyone_else(one: Resources) -> None:
    """Another caller's writes are refused until they are allowed again; the operator's are not."""
    enforcing = Enforcing(one.settings.aws.endpoint_url or "")
    name = one.settings.table("users")
    async with (
        aioboto3.Session().client("sts", endpoint_url=one.settings.aws.endpoint_url) as sts,
        enforcing.running() as url,
        aioboto3.Session().client(
            "dynamodb", endpoint_url=url, aws_access_key_id=OTHER, aws_secret_access_key="x"
        ) as other,
    ):
        enforcing.user_id = (await sts.get_caller_identity())["UserId"]
        aws = msgspec.structs.replace(one.settings.aws, endpoint_url=url)
        settings = msgspec.structs.replace(one.settings, aws=aws)
        await stop_writes(settings)
        with pytest.raises(other.exceptions.ClientError, match="explicit deny"):
            await other.put_item(TableName=name, Item={"user_id": {"S": "theirs"}})
        assert "Item" not in await other.get_item(TableName=name, Key={"user_id": {"S": "x"}})
        async with open_resources(settings) as resources:
            await put_batch(resources.dynamo, name, [item_of({"user_id": {"S": "ours"}})])
        await allow_writes(settings)
        await allow_writes(settings)
        await other.put_item(TableName=name, Item={"user_id": {"S": "theirs"}})


def test_a_policy_that_is_there_already_stays() -> None:
    """Only the statement of the restore is added, once, and removed."""
    own = {"Sid": "Own", "Effect": "Allow", "Principal": "*", "Action": "dynamodb:GetItem"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": own})
    denied = with_statement(with_statement(policy, "arn", None), "arn", "AIDA:me")
    first, second = json.loads(denied)["Statement"]
    assert (first, second["Sid"]) == (own, STATEMENT)
    assert second["Condition"] == {"StringNotEquals": {"aws:userid": "AIDA:me"}}
    assert json.loads(without_statement(denied) or "")["Statement"] == [own]
    assert without_statement(with_statement(None, "arn", None)) is None


async def test_the_command_restores_in_place(one: Resources, tmp_path: Path) -> None:
    """With a line per table, the builds, and the data as it was."""
    await fill(one)
    before = await contents(one)
    moment = timestamp(now() - timedelta(hours=1))
    arguments = ("restore", "--to-time", moment, "--into", "was", "--copy-back")
    await write_tag(one.settings, tables.MODELS, TAG, "copied from other")
    status, out, error = await run_k9(one.settings, tmp_path, *arguments, "--writes-stopped")
    assert (status, "interrupted restore of something else" in error) == (1, True)
    await write_tag(one.settings, tables.MODELS, TAG, "copied from was")
    await _damage(one)
    async with asyncio.timeout(100):
        status, out, error = await run_k9(one.settings, tmp_path, *arguments, "--writes-stopped")
    assert status == 0, error
    assert "embeddings: 11 put, 2 deleted," in out
    assert "build of m1 requested: " in out
    assert _comparable(await contents(one)) == _comparable(before)


class _Interrupting(Enforcing):
    """Until `refusing` ends it takes no policy away, as if the command had ended just before."""

    refusing = True

    async def answer(self, request: web.Request) -> web.Response:
        """Refuses what would allow writes again."""
        if self.refusing and request.headers.get("X-Amz-Target", "").endswith(
            "DeleteResourcePolicy"
        ):
            return web.json_response({"__type": "AccessDeniedException"}, status=400)
        return await super().answer(request)


async def test_writes_of_after_it_survive_a_repeat(one: Resources, tmp_path: Path) -> None:
    """Builds are requested before writes are allowed; a repeat from then on copies no more."""
    await fill(one)
    name = f"{one.settings.environment[:20]}-kept"
    moment = timestamp(now() - timedelta(hours=1))
    arguments = ("restore", "--to-time", moment, "--into", name, "--copy-back")
    url = one.settings.aws.endpoint_url or ""
    enforcing = _Interrupting(url)
    async with (
        aioboto3.Session().client("sts", endpoint_url=url) as sts,
        enforcing.running() as address,
    ):
        enforcing.user_id = (await sts.get_caller_identity())["UserId"]
        aws = msgspec.structs.replace(one.settings.aws, endpoint_url=address)
        settings = msgspec.structs.replace(one.settings, aws=aws)
        status, out, error = await run_k9(settings, tmp_path, *arguments)
        assert status == 1, out
        requested = (await one.models.get_model("m1")).open_build_id
        assert requested is not None, error
        await one.embedding_service.store_embedding("m1", "written since", np.ones(8, np.float32))
        enforcing.refusing = False
        status, out, error = await run_k9(settings, tmp_path, *arguments)
    assert status == 0, error
    assert b'[{"S":"written since"},{"S":"m1"}]' in (await contents(one))["embeddings"]
    assert (await one.models.get_model("m1")).open_build_id == requested
    assert await read_tag(one.settings, tables.MODELS, TAG) is None
