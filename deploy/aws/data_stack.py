"""The tables and the bucket of an environment, from `cloudformation/data.yaml`."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from botocore.exceptions import ClientError

from core.settings import Settings
from deploy.aws.clients import code_of, message_of, open_client
from deploy.aws.tables import TABLES, ensure_settings
from deploy.errors import CommandError

TEMPLATE = Path(__file__).parent.parent / "cloudformation" / "data.yaml"
Protection = Literal["auto", "true", "false"]
Report = Callable[[str], None]

_WAIT_S = 900.0
_POLL_S = 3.0
_GONE = "DELETE_COMPLETE"
_BROKEN = {"ROLLBACK_COMPLETE", "CREATE_FAILED", "ROLLBACK_FAILED", "DELETE_FAILED"}
# An update may change a table in place, and never swap it for an empty one of another key.
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
    """What `create_tables` did, and what there is now."""

    name: str
    change: Literal["created", "updated", "unchanged"]
    outputs: dict[str, str]
    """The template's outputs: `UsersTableName`, `IndexesBucketName` and so on."""
    turned_on: tuple[str, ...]
    """What the stack left off, and this call turned on."""

    @property
    def bucket(self) -> str:
        """The name of the bucket of index versions."""
        return self.outputs["IndexesBucketName"]


def _quiet(line: str) -> None:
    """Says nothing."""


async def create_tables(
    settings: Settings, *, protection: Protection = "auto", report: Report = _quiet
) -> DataStack:
    """Creates the environment's tables and bucket, or brings them up to the template.

    Running it again changes nothing. `report` is given a line a step.

    Raises:
        CommandError: when CloudFormation does not accept it or a resource fails, with its reason.
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
        change = await _apply(client, name, arguments, report)
        stack = await _describe(client, name)
    outputs = {o["OutputKey"]: o["OutputValue"] for o in (stack or {}).get("Outputs", [])}
    if "IndexesBucketName" not in outputs:
        raise CommandError(f"the stack {name} has no output IndexesBucketName: is it K9's?")
    turned_on = await ensure_settings(settings, report)
    return DataStack(name, change, outputs, turned_on)


def _refuse_overrides(settings: Settings) -> None:
    for table in TABLES:
        made = f"k9-{table}-{settings.environment}"
        if settings.table(table) != made:
            raise CommandError(
                f"DYNAMODB_{table.upper()}_TABLE is {settings.table(table)!r}, and the template "
                f"makes {made!r}: unset it to create the tables"
            )


async def _apply(
    client: Any, name: str, arguments: dict[str, Any], report: Report
) -> Literal["created", "updated", "unchanged"]:
    stack = await _describe(client, name)
    if stack and stack["StackStatus"].endswith("_IN_PROGRESS"):
        report(f"{name}: another change is under way, waiting for it")
        stack = await _settle(client, name, report)
    if stack and stack["StackStatus"] in _BROKEN:
        # Nothing of a failed first creation is kept, so the stack is an empty shell.
        report(f"{name}: removing what is left of a failed creation")
        await client.delete_stack(StackName=name)
        stack = await _settle(client, name, report)
    seen = await _event_ids(client, name) if stack else set()
    if stack is None:
        await client.create_stack(**arguments, OnFailure="ROLLBACK")
        change: Literal["created", "updated"] = "created"
    else:
        try:
            await client.update_stack(**arguments)
        except ClientError as error:
            if code_of(error) == "ValidationError" and "No updates" in message_of(error):
                return "unchanged"
            raise
        change = "updated"
    stack = await _settle(client, name, report, seen)
    status = stack["StackStatus"] if stack else _GONE
    if status not in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
        raise CommandError(
            f"{name} ended as {status}: {await _first_failure(client, name, seen, stack)}"
        )
    return change


async def _describe(client: Any, name: str) -> dict[str, Any] | None:
    try:
        reply = await client.describe_stacks(StackName=name)
    except ClientError as error:
        # CloudFormation has no code of its own for a stack that is not there.
        if code_of(error) == "ValidationError" and "does not exist" in message_of(error):
            return None
        raise
    stack: dict[str, Any] = reply["Stacks"][0]
    return None if stack["StackStatus"] == _GONE else stack


async def _settle(
    client: Any, name: str, report: Report, seen: set[str] | None = None
) -> dict[str, Any] | None:
    """The stack once nothing is under way in it, reporting each resource that is done."""
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
                        report(f"{event['LogicalResourceId']}: {_words(event)}")
        # UPDATE_COMPLETE_CLEANUP_IN_PROGRESS too is under way.
        if stack is None or not stack["StackStatus"].endswith("_IN_PROGRESS"):
            return stack
        if loop.time() > deadline:
            raise CommandError(f"{name} is still {stack['StackStatus']} after {_WAIT_S:.0f} s")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, _POLL_S)


def _words(event: dict[str, Any]) -> str:
    return str(event["ResourceStatus"]).lower().replace("_", " ")


async def _events(client: Any, name: str) -> list[dict[str, Any]]:
    """The newest page of the stack's events, oldest first."""
    try:
        reply = await client.describe_stack_events(StackName=name)
    except ClientError as error:
        if code_of(error) == "ValidationError":
            return []
        raise
    return list(reversed(reply["StackEvents"]))


async def _event_ids(client: Any, name: str) -> set[str]:
    return {event["EventId"] for event in await _events(client, name)}


async def _first_failure(
    client: Any, name: str, seen: set[str], stack: dict[str, Any] | None
) -> str:
    for event in await _events(client, name):
        reason = str(event.get("ResourceStatusReason", ""))
        failed = event["ResourceStatus"].endswith("_FAILED")
        if event["EventId"] not in seen and failed and "cancelled" not in reason:
            return f"{event['LogicalResourceId']}: {' '.join(reason.split())}"
    return str((stack or {}).get("StackStatusReason", "no reason was given"))
