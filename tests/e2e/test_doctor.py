"""`k9 doctor`: a sound environment, each kind of fault by its name, and nothing left behind."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aioboto3
import msgspec
import pytest

from core.dynamo import tables
from core.dynamo.client import open_dynamo
from core.dynamo.expressions import key as row_key
from core.dynamo.items import attribute_of
from core.models import now, timestamp
from core.names import uploads_prefix
from core.object_store import open_object_store
from core.settings import Auth, Settings, Tables
from deploy.aws.clients import open_client
from deploy.data.bulk import scan_segment
from deploy.doctor.examination import examine
from deploy.doctor.latency import MODEL_VERSION
from deploy.doctor.report import Report
from deploy.doctor.services import BUCKET_ACTIONS
from deploy.doctor.tables import ACTIONS
from tests.api.pool import CLIENT_ID, Pool, running_pool
from tests.e2e.commands import run_k9
from tests.e2e.guarded import enforce_policies, new_user
from tests.emulators import create_tables, running, settings_for

_NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    """A user pool's keys."""
    async with running_pool() as made:
        yield made


@pytest.fixture
def sound(stack_settings: Settings, pool: Pool) -> Settings:
    """An environment in which nothing is wrong."""
    auth = Auth(auth_issuer=pool.issuer, auth_jwks_url=pool.url, auth_client_ids=(CLIENT_ID,))
    return msgspec.structs.replace(stack_settings, auth=auth)


async def _examine(settings: Settings, calls: int = 0) -> Report:
    return await examine(settings, calls=calls, timeout_s=60)


def _failed(report: Report) -> dict[str, str]:
    assert all(check.advice for check in report.failed)
    return {check.name: check.detail for check in report.failed}


async def _rows(settings: Settings) -> int:
    async with open_dynamo(settings) as dynamo:
        return sum(
            [
                len(page)
                for table in tables.ALL
                async for page in scan_segment(dynamo, settings.table(table.name))
            ]
        )


async def test_nothing_is_wrong_and_nothing_is_left(sound: Settings) -> None:
    """Every part is examined, calls are timed, and no row or object of its own remains."""
    report = await _examine(sound, calls=5)
    assert _failed(report) == {}
    subjects = " ".join(check.name for check in report.checks if check.status == "ok")
    parts = ("settings", "rates", "credentials", "clock", "limits", "TTL", "redis", "bucket")
    for part in (*parts, "token keys", "open files", "memory", "latency of put"):
        assert part in subjects
    for table in tables.ALL:
        assert f"table {sound.table(table.name)}" in subjects
        assert f"rights on {sound.table(table.name)}" in subjects
    assert [each.operation for each in report.latency] == ["put", "get", "query"]
    assert all(0 < each.p50_ms <= each.p99_ms <= each.max_ms for each in report.latency)
    assert await _rows(sound) == 0
    async with open_object_store(sound) as objects:
        assert await objects.list_keys("") == []


async def test_what_a_killed_run_left_is_removed_later(sound: Settings) -> None:
    """A row of its own that is an hour old goes; a fresh one, of a run elsewhere, stays."""
    table = sound.table("embeddings")
    async with open_dynamo(sound) as dynamo:
        for product_id, moment in (("old", "2025-01-01T00:00:00Z"), ("fresh", timestamp(now()))):
            row = {
                "product_id": product_id,
                "model_version": MODEL_VERSION,
                tables.MODEL_SHARD: MODEL_VERSION,
                "updated_at": moment,
            }
            item = {name: attribute_of(value) for name, value in row.items()}
            await dynamo.call("put_item", TableName=table, Item=item)
        await _examine(sound, calls=1)
        left = [item["product_id"].S async for page in scan_segment(dynamo, table) for item in page]
        assert left == ["fresh"]
        fresh = row_key(product_id="fresh", model_version=MODEL_VERSION)
        await dynamo.call("delete_item", TableName=table, Key=fresh)


async def test_tables_that_are_not_as_the_code_expects(sound: Settings) -> None:
    """A missing one, and one with another key and without the index, are named with the fault."""
    swapped = Tables(users_table="none-such", reports_table=sound.table("users"))
    found = _failed(await _examine(msgspec.structs.replace(sound, tables=swapped)))
    assert found["table none-such"] == "does not exist"
    wrong = found[f"table {sound.table('users')}"]
    assert "has the key user_id in place of id" in wrong
    assert "has no index UserReportsIndex" in wrong


async def test_safeguards_that_are_off_are_named(ministack: str, sound: Settings) -> None:
    """TTL and point-in-time recovery fail the examination, since data would be lost or stay."""
    made = await create_tables(settings_for(ministack))
    settings = msgspec.structs.replace(sound, environment=made.environment, aws=made.aws)
    users, idempotency = settings.table("users"), settings.table("idempotency")
    async with aioboto3.Session().client("dynamodb", endpoint_url=ministack) as client:
        await client.update_continuous_backups(
            TableName=users, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": False}
        )
        await client.update_time_to_live(
            TableName=idempotency,
            TimeToLiveSpecification={"AttributeName": "expires_at", "Enabled": False},
        )
    assert _failed(await _examine(settings)) == {
        f"recovery of {users}": "point-in-time recovery is off",
        f"TTL of {idempotency}": "off",
    }


async def test_a_bucket_redis_and_pool_that_are_not_there(sound: Settings, pool: Pool) -> None:
    """Each is named, and the examination of the others goes on."""
    aws = msgspec.structs.replace(sound.aws, bucket="no-such-bucket")
    auth = msgspec.structs.replace(
        sound.auth, auth_jwks_url="http://127.0.0.1:1/us-east-1_other/.well-known/jwks.json"
    )
    settings = msgspec.structs.replace(
        sound, aws=aws, auth=auth, redis_url="redis://:secret-word@127.0.0.1:1/0"
    )
    report = await _examine(settings)
    assert set(_failed(report)) == {
        "bucket no-such-bucket",
        "redis 127.0.0.1:1",
        "token issuer",
        "token keys",
    }
    assert "secret-word" not in msgspec.json.encode(report).decode()
    pool.body = b"[]"
    found = _failed(await _examine(sound))
    assert "did not answer with a key set" in found["token keys"]


def _statement(effect: str, actions: list[str]) -> dict[str, Any]:
    return {"Effect": effect, "Action": actions, "Resource": "*"}


class Guarded(msgspec.Struct, frozen=True):
    """Its settings, and the access key and secret of each user."""

    settings: Settings
    keys: dict[str, tuple[str, str]]

    def as_user(self, sound: Settings, user: str, patch: pytest.MonkeyPatch) -> Settings:
        """Settings with which everything else is sound; the environment has the user's key."""
        patch.setenv("AWS_ACCESS_KEY_ID", self.keys[user][0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", self.keys[user][1])
        own = self.settings
        return msgspec.structs.replace(sound, environment=own.environment, aws=own.aws)


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Guarded]:
    """An environment on a moto that evaluates policies, with two users of few rights."""
    api = {"sts:GetCallerIdentity", "dynamodb:DescribeTable", *BUCKET_ACTIONS["api"]}
    actions = {each.partition("/")[0] for of in ACTIONS["api"].values() for each in of}
    api |= {f"dynamodb:{action}" for action in actions}
    api.add("dynamodb:TransactWriteItems")  # moto's right; AWS asks for that of each part
    denied = ["dynamodb:PutItem", "dynamodb:Query", "s3:DeleteObject"]
    with running("moto") as url:
        made = await create_tables(settings_for(url))
        keys = {
            "api": await new_user(url, "api", [_statement("Allow", sorted(api))]),
            "reader": await new_user(
                url, "reader", [_statement("Allow", sorted(api - {"s3:PutObject"}))]
            ),
            "denied": await new_user(
                url, "denied", [_statement("Allow", ["*"]), _statement("Deny", denied)]
            ),
        }
        enforce_policies(url)
        yield Guarded(made, keys)


async def test_each_process_is_examined_by_its_own_rights(
    sound: Settings, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no more than the API's rights, that process is sound, and the worker is not."""
    settings = guarded.as_user(sound, "api", monkeypatch)
    api = await examine(settings, calls=1, timeout_s=60, process="api")
    assert _failed(api) == {}
    assert {check.name for check in api.checks if check.status == "skipped"} >= {
        f"recovery of {settings.table('users')}",
        "limits of DynamoDB",
    }
    worker = await examine(settings, calls=1, timeout_s=60, process="worker")
    assert [each.operation for each in worker.latency] == ["query"]
    rights = _failed(worker)[f"bucket {settings.aws.bucket}"]
    assert rights == "denied: s3:AbortMultipartUpload, s3:DeleteObject"


async def test_uploads_that_an_api_may_not_sign_are_told(
    sound: Settings, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 refuses what is put by such an address. Where it may be, nothing is left of the check."""
    settings = guarded.as_user(sound, "reader", monkeypatch)
    found = _failed(await examine(settings, calls=1, timeout_s=60, process="api"))
    assert found[f"bucket {settings.aws.bucket}"] == "denied: s3:PutObject"
    settings = guarded.as_user(sound, "api", monkeypatch)
    await examine(settings, calls=1, timeout_s=60, process="api")
    async with open_client("s3", settings) as client:
        prefix = uploads_prefix(settings.environment)
        left = await client.list_objects_v2(Bucket=settings.aws.bucket, Prefix=prefix)
    assert left["KeyCount"] == 0


async def test_a_denied_action_is_named(
    sound: Settings, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a user whose policy denies three actions; and a wrong secret is a wrong secret."""
    settings = guarded.as_user(sound, "denied", monkeypatch)
    found = _failed(await _examine(settings))
    assert found[f"rights on {settings.table('embeddings')}"] == (
        "denied: dynamodb:PutItem, dynamodb:Query/ModelVersionIndex"
    )
    assert found[f"rights on {settings.table('users')}"] == "denied: dynamodb:PutItem"
    assert found[f"bucket {settings.aws.bucket}"] == "denied: s3:DeleteObject"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    assert list(_failed(await _examine(settings))) == ["credentials"]


async def test_without_anything_it_reports_in_time(tmp_path: Path) -> None:
    """No address answers: one JSON object, a line, status 1, and no trace."""
    settings = Settings(aws=msgspec.structs.replace(Settings().aws, endpoint_url=_NOWHERE))
    async with asyncio.timeout(60):
        status, out, error = await run_k9(settings, tmp_path, "doctor", "--json")
    assert (status, error.count("\n")) == (1, 1)
    report = msgspec.json.decode(out, type=Report)
    assert {"sts", "dynamodb", "bucket", "redis 127.0.0.1:1"} <= set(_failed(report))
    assert report.latency == []


async def test_the_command_prints_what_it_found(sound: Settings, tmp_path: Path) -> None:
    """A line per check, with advice below what is wrong."""
    status, out, error = await run_k9(sound, tmp_path, "doctor", "--calls", "1")
    assert status == 1  # run_k9 sets no Redis and no user pool
    assert "ok       credentials: arn:aws:" in out
    assert "failed   token issuer: K9_AUTH_ISSUER is not set\n         → set it to" in out
    assert "checks failed" in error
    status, _, error = await run_k9(sound, tmp_path, "doctor", "--calls", "-1")
    assert (status, "--calls" in error) == (64, True)
