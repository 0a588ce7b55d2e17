"""Deletes an environment's data: tables, which the stack retains, and the bucket."""

from typing import Any, Final

from botocore.exceptions import ClientError

from core import names
from core.dynamo import tables
from core.settings import Settings
from deploy.aws import stacks
from deploy.aws.clients import code_of, open_client
from deploy.aws.replicas import replica_states
from deploy.aws.tables import describe_table
from deploy.callbacks import MessageCallback
from deploy.errors import CommandError

_PAGE: Final = 1000


async def check_deletable(settings: Settings) -> None:
    """Checks that no table is protected or has a replica, before anything is deleted.

    Raises:
        CommandError: one is or has; with what to do.
    """
    async with open_client("dynamodb", settings) as client:
        for table in tables.ALL:
            described = await describe_table(client, settings.table(table.name)) or {}
            if described and (replicas := await replica_states(client, settings.table(table.name))):
                regions = ", ".join(replicas)
                raise CommandError(
                    f"{settings.table(table.name)} has replicas in {regions}, which would stay: "
                    "remove them first, as deploy/docs/deployment.md says"
                )
            if described.get("DeletionProtectionEnabled"):
                raise CommandError(
                    f"{settings.table(table.name)} is protected against deletion: "
                    f"`K9_ENVIRONMENT={settings.environment} k9 tables create --protection false` "
                    "turns that off"
                )


async def delete_data(settings: Settings, message: MessageCallback) -> None:
    """Deletes the data stack, then the tables and the bucket that it leaves."""
    name = f"k9-data-{settings.environment}"
    async with open_client("cloudformation", settings) as client:
        bucket = (await stacks.outputs(client, name)).get("IndexesBucketName")
        if bucket is None:  # an earlier run was interrupted after it had deleted the stack
            async with open_client("sts", settings) as sts:
                account = (await sts.get_caller_identity())["Account"]
            bucket = names.default_bucket(settings.environment, account)
        message(f"deleting {name}")
        await stacks.delete(client, name, message)
    async with open_client("dynamodb", settings) as client:
        for table in tables.ALL:
            full_name = settings.table(table.name)
            if await describe_table(client, full_name) is not None:
                message(f"deleting the table {full_name}")
                await client.delete_table(TableName=full_name)
                await client.get_waiter("table_not_exists").wait(TableName=full_name)
    async with open_client("s3", settings) as client:
        await _delete_bucket(client, bucket, message)


async def _delete_bucket(client: Any, bucket: str, message: MessageCallback) -> None:
    try:
        await client.head_bucket(Bucket=bucket)
        message(f"deleting the bucket {bucket}")
        while True:
            page = await client.list_objects_v2(Bucket=bucket, MaxKeys=_PAGE)
            keys = [{"Key": each["Key"]} for each in page.get("Contents", [])]
            if not keys:
                break
            reply = await client.delete_objects(
                Bucket=bucket, Delete={"Objects": keys, "Quiet": True}
            )
            if refused := reply.get("Errors"):  # the next page would begin with the same ones
                first = refused[0]
                raise CommandError(
                    f"{bucket}: {first.get('Key')} was not deleted: {first.get('Code')}"
                )
        await client.delete_bucket(Bucket=bucket)
    except ClientError as error:
        if code_of(error) not in {"404", "NoSuchBucket"}:
            raise
