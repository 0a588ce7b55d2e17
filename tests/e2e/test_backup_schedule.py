"""The template of scheduled backups: it is created, and its role is enough and no more."""

from pathlib import Path

import aioboto3
import pytest

from deploy.aws.stacks import TEMPLATES, StackSpec, apply
from tests.e2e.commands import run_k9
from tests.e2e.guarded import enforce_policies, new_user
from tests.emulators import create_tables, running, settings_for
from tests.templates import arguments_only, read_template


def _statements() -> list[dict[str, object]]:
    resources = arguments_only(read_template("backup")["Resources"])
    (policy,) = resources["BackupRole"]["Properties"]["Policies"]
    statements: list[dict[str, object]] = policy["PolicyDocument"]["Statement"]
    return statements


async def test_the_stack_is_created_and_runs_a_backup_each_night(ministack: str) -> None:
    """On the emulator, which starts no task: bucket, retention, task and schedule are as meant."""
    settings = settings_for(ministack)
    parameters = {
        "Environment": settings.environment,
        "Image": "k9:test",
        "VpcId": "vpc-1",
        "TaskSubnets": "subnet-1",
    }
    text = (TEMPLATES / "backup.yaml").read_text(encoding="utf-8")
    spec = StackSpec(name=f"k9-backup-{settings.environment}", template=text, parameters=parameters)
    session = aioboto3.Session()
    async with session.client("cloudformation", endpoint_url=ministack) as client:
        assert await apply(client, spec) == "created"
    async with session.client("scheduler", endpoint_url=ministack) as client:
        schedule = await client.get_schedule(Name=f"k9-{settings.environment}-backup")
    assert schedule["ScheduleExpression"] == "cron(0 2 * * ? *)"
    async with session.client("ecs", endpoint_url=ministack) as client:
        task = await client.describe_task_definition(
            taskDefinition=f"k9-{settings.environment}-backup"
        )
    (container,) = task["taskDefinition"]["containerDefinitions"]
    bucket = f"k9-backups-{settings.environment}-000000000000"
    assert container["command"] == ["k9", "backup", f"s3://{bucket}/{settings.environment}"]
    assert container["readonlyRootFilesystem"]


async def test_the_role_is_enough_for_a_backup_and_cannot_change_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the template's own statements, on a moto that evaluates them."""
    with running("moto") as url:
        made = await create_tables(settings_for(url))
        bucket = "k9-backups-of-the-role"
        async with aioboto3.Session().client("s3", endpoint_url=url) as client:
            await client.create_bucket(Bucket=bucket)
        # moto knows no resource of an action of DynamoDB.
        policy = [{**statement, "Resource": "*"} for statement in _statements()]
        key, secret = await new_user(url, "backup", policy)
        enforce_policies(url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        place = f"s3://{bucket}/{made.environment}"
        status, out, error = await run_k9(made, tmp_path, "backup", place)
        assert (status, error) == (0, "")
        name = out.partition(f"{place}/")[2].split()[0]
        status, _, error = await run_k9(made, tmp_path, "restore", f"{place}/{name}")
        assert status == 1
        assert "AccessDenied" in error
