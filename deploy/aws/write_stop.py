"""Stops all writes to an environment's tables but those of the caller, by DynamoDB itself.

A resource-based policy of each table denies writing to every other identity, so it holds for API
and workers of every release, and for whatever else has access. A policy that a table has already
stays: a statement is added to it, and removed again.
"""

import asyncio
import json
from typing import Any, Final
from uuid import uuid4

from core.concurrency import gather
from core.dynamo import tables
from core.retry import RetryPolicy
from core.settings import Settings
from deploy.aws.attempts import Outcome, attempt
from deploy.aws.clients import open_client
from deploy.errors import CommandError

STATEMENT: Final = "K9RestoreStopsWrites"
_WRITES: Final = tuple(
    f"dynamodb:{action}"
    for action in (
        *("PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem"),
        *("PartiQLInsert", "PartiQLUpdate", "PartiQLDelete"),
    )
)
_IN_EFFECT_S: Final = 60.0
"""A policy takes some seconds to hold everywhere."""
_POLL: Final = RetryPolicy(first_s=0.5, max_s=0.5, jitter=0.0)
_NO_POLICY: Final = "PolicyNotFoundException"


async def stop_writes(settings: Settings, *, in_effect_s: float = _IN_EFFECT_S) -> None:
    """Denies every write by anyone else, and returns once DynamoDB enforces it.

    To see that it is enforced, the caller's own writes are denied first, for a moment.

    Raises:
        CommandError: DynamoDB does not enforce such a policy, as emulators do not, or does not take
            it; nothing is denied then.
    """
    async with open_client("sts", settings) as client:
        caller = str((await client.get_caller_identity())["UserId"])
    async with open_client("dynamodb", settings) as client:
        names = [settings.table(table.name) for table in tables.ALL]
        try:
            for permitted in (None, caller):
                await gather(*(_deny(client, name, permitted) for name in names))
                expected: Outcome = "denied" if permitted is None else "error"
                await gather(
                    *(
                        _wait(client, table, settings.table(table.name), expected, in_effect_s)
                        for table in tables.ALL
                    )
                )
        except BaseException:
            await asyncio.shield(gather(*(_allow(client, name) for name in names)))
            raise


async def allow_writes(settings: Settings) -> None:
    """Removes what `stop_writes` added; does nothing where there is none.

    Raises:
        CommandError: DynamoDB does not take it.
    """
    async with open_client("dynamodb", settings) as client:
        await gather(*(_allow(client, settings.table(table.name)) for table in tables.ALL))


def with_statement(policy: str | None, arn: str, caller: str | None) -> str:
    """A policy that also denies writing to all, or to all but one caller (its `aws:userid`)."""
    document = _without(policy)
    statement: dict[str, Any] = {
        "Sid": STATEMENT,
        "Effect": "Deny",
        "Principal": "*",
        "Action": list(_WRITES),
        "Resource": arn,
    }
    if caller is not None:
        statement["Condition"] = {"StringNotEquals": {"aws:userid": caller}}
    return json.dumps({**document, "Statement": [*document["Statement"], statement]})


def without_statement(policy: str | None) -> str | None:
    """The policy without that statement; None where nothing else is in it."""
    document = _without(policy)
    return json.dumps(document) if document["Statement"] else None


def _without(policy: str | None) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(policy) if policy else {"Version": "2012-10-17"}
    statements = document.get("Statement", [])
    if isinstance(statements, dict):  # a single one may stand without a list
        statements = [statements]
    others = [each for each in statements if each.get("Sid") != STATEMENT]
    return {**document, "Statement": others}


async def _policy(client: Any, name: str) -> tuple[str, str | None]:
    """The table's ARN and its policy."""
    arn = str((await client.describe_table(TableName=name))["Table"]["TableArn"])
    found = await attempt(client, "get_resource_policy", ResourceArn=arn)
    if found.outcome == "ok":
        return arn, str(found.reply["Policy"])
    if found.code == _NO_POLICY:
        return arn, None
    raise CommandError(f"{name}: its policy cannot be read: {found.code} {found.message}".rstrip())


async def _deny(client: Any, name: str, caller: str | None) -> None:
    arn, policy = await _policy(client, name)
    await client.put_resource_policy(ResourceArn=arn, Policy=with_statement(policy, arn, caller))


async def _allow(client: Any, name: str) -> None:
    arn, policy = await _policy(client, name)
    if policy is None or STATEMENT not in policy:
        return
    rest = without_statement(policy)
    if rest is None:
        await client.delete_resource_policy(ResourceArn=arn)
    else:
        await client.put_resource_policy(ResourceArn=arn, Policy=rest)


async def _wait(
    client: Any, table: tables.Table, name: str, expected: Outcome, in_effect_s: float
) -> None:
    """Waits until a write of the caller is denied, or fails by its condition, which never holds."""
    key = {attribute: {"S": f"k9-restore-{uuid4().hex}"} for attribute in table.key.attributes}
    problem = ""
    async for _ in _POLL.attempts(within_s=in_effect_s):
        made = await attempt(
            client,
            "delete_item",
            TableName=name,
            Key=key,
            ConditionExpression="attribute_exists(#k)",
            ExpressionAttributeNames={"#k": table.key.partition},
        )
        if made.outcome == expected:
            return
        problem = made.message or made.code
    if expected == "denied":
        raise CommandError(
            f"DynamoDB does not stop writes to {name} by its policy, as emulators do not: stop the "
            "API and the workers yourself, then add --writes-stopped"
        )
    raise CommandError(f"{name}: {problem}: writing to it must be allowed")
