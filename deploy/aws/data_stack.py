"""The CloudFormation stack of an environment's tables and bucket, by `cloudformation/data.yaml`."""

import asyncio
import json
from pathlib import Path
from typing import Any, Literal

import msgspec
from botocore.exceptions import ClientError

from core.dynamo import tables
from core.settings import Settings
from deploy.aws.clients import code_of, message_of, open_client
from deploy.aws.tables import ensure_settings
from deploy.callbacks import MessageCallback, ignore
from deploy.errors import CommandError

TEMPLATE = Path(__file__).parent.parent / "cloudformation" / "data.yaml"
Protection = Literal["auto", "true", "false"]
Change = Literal["created", "updated", "unchanged"]

_WAIT_S = 900.0
_POLL_S = 3.0
_DELETED = "DELETE_COMPLETE"
_BROKEN = {"ROLLBACK_COMPLETE", "CREATE_FAILED", "ROLLBACK_FAILED", "DELETE_FAILED"}
# An update may change a table in place, but never replace it by an empty one with another key.
_STACK_POLICY = json.dumps(
    {
        "Statement": [
            {"Effect": "Allow", "Action": "Update:*", "Principal": "*", "Resource": "*"},
            {
                "Effect": "Deny",
                "Action": ["Update:Replace", "Update:Delete"],
                "Principal": "*",
                "Resource": "*",
                "Condition": {
                    "StringEquals": {"ResourceType": ["AWS::DynamoDB::Table", "AWS::S3::Bucket"]}
                },
            },
        ]
    }
)


class DataStack(msgspec.Struct, frozen=True):
    """What `create_tables` did, and the stack's outputs."""

    name: str
    change: Change
    outputs: dict[str, str]
    """The template's outputs: `UsersTableName`, `IndexesBucketName` and so on."""

    @property
    def bucket(self) -> str:
        """The name of the bucket of index versions."""
        return self.outputs["IndexesBucketName"]


async def create_tables(
    settings: Settings, *, protection: Protection = "auto", message: MessageCallback = ignore
) -> DataStack:
    """Creates the environment's tables and bucket, or updates them to the template.

    Running it again changes nothing. `message` is called with a line per step.

    Raises:
        CommandError: CloudFormation did not accept it or a resource failed; with the reason.
    """
    _refuse_overrides(settings)
    name = f"k9-data-{settings.environment}"
    arguments = {
        "StackName": name,
        "TemplateBody": TEMPLATE.read_text(encoding="utf-8"),
        "Parameters": [
            {"ParameterKey": "Environment", "ParameterValue": settings.environment},
            {"ParameterKey": "DeletionProtection", "ParameterValue": protection},
        ],
        "StackPolicyBody": _STACK_POLICY,
    }
    async with open_client("cloudformation", settings) as client:
        change = await _apply(client, name, arguments, message)
        stack = await _describe(client, name)
    outputs = {o["OutputKey"]: o["OutputValue"] for o in (stack or {}).get("Outputs", [])}
    if "IndexesBucketName" not in outputs:
        raise CommandError(f"the stack {name} has no output IndexesBucketName: is it K9's?")
    await ensure_settings(settings, message)
    return DataStack(name, change, outputs)


def _refuse_overrides(settings: Settings) -> None:
    for table in tables.ALL:
        name = f"k9-{table.name}-{settings.environment}"
        override = settings.table(table.name)
        if override != name:
            raise CommandError(
                f"DYNAMODB_{table.name.upper()}_TABLE is {override!r}, but the template creates "
                f"{name!r}: unset it to create the tables"
            )


async def _apply(
    client: Any, name: str, arguments: dict[str, Any], message: MessageCallback
) -> Change:
    stack = await _describe(client, name)
    if stack and stack["StackStatus"].endswith("_IN_PROGRESS"):
        message(f"{name}: another change is in progress, waiting for it")
        stack = await _settle(client, name, message)
    if stack and stack["StackStatus"] in _BROKEN:
        # CloudFormation rolled back a failed first creation, so the stack has no resources.
        message(f"{name}: deleting the stack of a failed creation")
        await client.delete_stack(StackName=name)
        stack = await _settle(client, name, message)
    seen = {event["EventId"] for event in await _events(client, name)} if stack else set()
    if stack is None:
        await client.create_stack(**arguments, OnFailure="ROLLBACK")
        change: Change = "created"
    else:
        try:
            await client.update_stack(**arguments)
        except ClientError as error:
            if code_of(error) == "ValidationError" and "No updates" in message_of(error):
                return "unchanged"
            raise
        change = "updated"
    stack = await _settle(client, name, message, seen)
    status = stack["StackStatus"] if stack else _DELETED
    if status not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
        raise CommandError(
            f"{name} ended as {status}: {await _first_failure(client, name, seen, stack)}"
        )
    return change


async def _describe(client: Any, name: str) -> dict[str, Any] | None:
    try:
        reply = await client.describe_stacks(StackName=name)
    except ClientError as error:
        # CloudFormation has no separate code for a stack that does not exist.
        if code_of(error) == "ValidationError" and "does not exist" in message_of(error):
            return None
        raise
    stack: dict[str, Any] = reply["Stacks"][0]
    return None if stack["StackStatus"] == _DELETED else stack


async def _settle(
    client: Any, name: str, message: MessageCallback, seen: set[str] | None = None
) -> dict[str, Any] | None:
    """The stack once no change is in progress; `message` is called with each resource's result."""
    known = set() if seen is None else set(seen)
    pause_s = 0.05
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT_S
    while True:
        stack = await _describe(client, name)
        if stack is not None and seen is not None:
            for event in await _events(client, name):
                if event["EventId"] not in known:
                    known.add(event["EventId"])
                    if event["ResourceStatus"].endswith(("_COMPLETE", "_FAILED")):
                        status = str(event["ResourceStatus"]).lower().replace("_", " ")
                        message(f"{event['LogicalResourceId']}: {status}")
        # This includes UPDATE_COMPLETE_CLEANUP_IN_PROGRESS.
        if stack is None or not stack["StackStatus"].endswith("_IN_PROGRESS"):
            return stack
        if loop.time() > deadline:
            raise CommandError(f"{name} is still {stack['StackStatus']} after {_WAIT_S:.0f} s")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _POLL_S)


async def _events(client: Any, name: str) -> list[dict[str, Any]]:
    """The newest page of the stack's events, oldest first."""
    try:
        reply = await client.describe_stack_events(StackName=name)
    except ClientError as error:
        if code_of(error) == "ValidationError":
            return []
        raise
    return list(reversed(reply["StackEvents"]))


async def _first_failure(
    client: Any, name: str, seen: set[str], stack: dict[str, Any] | None
) -> str:
    for event in await _events(client, name):
        reason = str(event.get("ResourceStatusReason", ""))
        failed = event["ResourceStatus"].endswith("_FAILED")
        if event["EventId"] not in seen and failed and "cancelled" not in reason:
            return f"{event['LogicalResourceId']}: {' '.join(reason.split())}"
    return str((stack or {}).get("StackStatusReason", "no reason was given"))
