"""The tables: whether they are there, with the keys, indexes and safeguards that K9 expects."""

from typing import Any, Final

from core.concurrency import gather
from core.dynamo import tables
from core.settings import Settings
from deploy.aws.attempts import Attempt, attempt
from deploy.aws.tables import shape_problems
from deploy.doctor.report import Check, Process, failed, not_allowed, ok, skipped, warning

_CREATE: Final = "run `k9 tables create`"


async def check_tables(client: Any, settings: Settings) -> list[Check]:
    """One check per table of the environment, and one per safeguard that is not on."""
    lists = await gather(
        *(_check_table(client, table, settings.table(table.name), settings) for table in tables.ALL)
    )
    return [check for checks in lists for check in checks]


async def _check_table(
    client: Any, table: tables.Table, name: str, settings: Settings
) -> list[Check]:
    subject = f"table {name}"
    described = await attempt(client, "describe_table", TableName=name)
    if described.code == "ResourceNotFoundException":
        return [failed(subject, "does not exist", _CREATE)]
    if described.outcome == "denied":
        return [not_allowed(subject, "dynamodb:DescribeTable")]
    if described.outcome != "ok":
        return [failed(subject, described.message, "see the checks of DynamoDB above")]
    found = described.reply["Table"]
    wrong = list(shape_problems(found, table))
    if wrong:
        advice = (
            "wait until DynamoDB has finished the change"
            if all("not active" in each for each in wrong)
            else "K9 cannot work with this table: create it by `k9 tables create` under another "
            "K9_ENVIRONMENT, or correct the name in DYNAMODB_…_TABLE"
        )
        return [failed(subject, "; ".join(wrong), advice)]
    indexes = ", ".join(table.indexes) or "no index"
    return [
        ok(subject, f"active, key {' + '.join(table.key.attributes)}, {indexes}"),
        *await _safeguards(client, table, name, found, settings),
    ]


async def _safeguards(
    client: Any, table: tables.Table, name: str, found: dict[str, Any], settings: Settings
) -> list[Check]:
    """TTL, point-in-time recovery, encryption, protection: a check for each that is off."""
    checks = []
    backups = await attempt(client, "describe_continuous_backups", TableName=name)
    subject = f"recovery of {name}"
    description = backups.reply.get("ContinuousBackupsDescription", {})
    recovery = description.get("PointInTimeRecoveryDescription", {})
    if backups.outcome == "denied":
        checks.append(not_allowed(subject, "dynamodb:DescribeContinuousBackups"))
    elif recovery.get("PointInTimeRecoveryStatus") != "ENABLED":
        detail = backups.message or "point-in-time recovery is off"
        checks.append(failed(subject, detail, f"{_CREATE}, which turns it on"))
    if table.ttl is not None:
        checks.append(await _time_to_live(client, name, table.ttl))
    if (found.get("SSEDescription") or {}).get("Status") not in {"ENABLED", "UPDATING"}:
        advice = f"{_CREATE}, which turns on encryption by KMS"
        checks.append(warning(f"encryption of {name}", "not by a key of KMS", advice))
    if not found.get("DeletionProtectionEnabled") and settings.environment != "dev":
        advice = "run `k9 tables create --protection true`"
        checks.append(warning(f"protection of {name}", "the table can be deleted", advice))
    return checks


async def _time_to_live(client: Any, name: str, attribute: str) -> Check:
    described = await attempt(client, "describe_time_to_live", TableName=name)
    subject = f"TTL of {name}"
    if described.outcome == "denied":
        return not_allowed(subject, "dynamodb:DescribeTimeToLive")
    ttl = described.reply.get("TimeToLiveDescription", {})
    on = ttl.get("TimeToLiveStatus") in {"ENABLED", "ENABLING"}
    if on and ttl.get("AttributeName") == attribute:
        return ok(subject, f"on {attribute}")
    other = f"on {ttl.get('AttributeName')} in place of {attribute}" if on else "off"
    return failed(
        subject, described.message or other, f"{_CREATE}: expired rows would stay, and be paid for"
    )


# --- rights ---------------------------------------------------------------------------------------

ACTIONS: Final[dict[Process, dict[str, tuple[str, ...]]]] = {
    "api": {
        "users": ("GetItem", "PutItem", "UpdateItem", "ConditionCheckItem"),
        "reports": ("GetItem", "PutItem", "DeleteItem", "Query/UserReportsIndex"),
        "embeddings": (
            *("GetItem", "BatchGetItem", "PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem"),
            "Query/ModelVersionIndex",
        ),
        "models": ("GetItem", "PutItem", "UpdateItem", "ConditionCheckItem", "Scan"),
        "builds": ("GetItem", "PutItem", "UpdateItem", "Query/ModelBuildsIndex"),
        "idempotency": ("PutItem", "UpdateItem"),
        "imports": ("GetItem", "PutItem", "UpdateItem", "Query/ModelImportsIndex"),
    },
    "worker": {
        "users": ("GetItem", "UpdateItem", "DeleteItem", "ConditionCheckItem"),
        "reports": ("DeleteItem", "Query/UserReportsIndex"),
        "embeddings": (
            *("BatchGetItem", "PutItem", "DeleteItem", "BatchWriteItem"),
            "Query/ModelVersionIndex",
        ),
        "models": (
            *("GetItem", "PutItem", "UpdateItem", "DeleteItem", "ConditionCheckItem"),
            "Scan",
        ),
        "builds": (
            *("GetItem", "UpdateItem", "DeleteItem"),
            *("Query/ModelBuildsIndex", "Query/OpenBuildsIndex"),
        ),
        "idempotency": ("PutItem", "DeleteItem", "Query"),
        "imports": (
            *("GetItem", "PutItem", "UpdateItem", "DeleteItem", "ConditionCheckItem"),
            *("Query/ModelImportsIndex", "Query/OpenImportsIndex"),
        ),
    },
}
"""The actions that each process calls, by table, as its role has them; a query with its index."""


def actions_of(process: Process | None, table: str) -> list[str]:
    """The actions of one process on a table, or those of both."""
    needed = ACTIONS.values() if process is None else [ACTIONS[process]]
    return list(dict.fromkeys(action for by_table in needed for action in by_table[table]))


async def check_rights(
    client: Any, settings: Settings, key: str, process: Process | None
) -> list[Check]:
    """One check per table: which actions that K9 calls are denied.

    Every write has a condition that does not hold, so that nothing is written: AWS checks rights
    first.

    Args:
        client: Of DynamoDB.
        settings: With the names of the tables.
        key: The text of every key attribute; no row may have it.
        process: Whose actions; None: those of API and worker together.
    """
    return await gather(
        *(
            _check_rights(
                client, table, settings.table(table.name), key, actions_of(process, table.name)
            )
            for table in tables.ALL
        )
    )


async def _check_rights(
    client: Any, table: tables.Table, name: str, key: str, actions: list[str]
) -> Check:
    made: list[tuple[str, Attempt]] = []
    for action in actions:
        operation, parameters = _request(action, table, name, key)
        made.append((action, await attempt(client, operation, **parameters)))
    subject = f"rights on {name}"
    denied = sorted({f"dynamodb:{action}" for action, each in made if each.outcome == "denied"})
    if denied:
        advice = f"allow the role {', '.join(denied)} on {name} and its indexes"
        return failed(subject, f"denied: {', '.join(denied)}", advice)
    if any(each.code == "ResourceNotFoundException" for _, each in made):
        return skipped(subject, "the table or one of its indexes does not exist", _CREATE)
    broken = next((each for _, each in made if not each.permitted), None)
    if broken is not None:
        return failed(subject, broken.message, "see the checks of DynamoDB above")
    return ok(subject, ", ".join(actions))


def _request(action: str, table: tables.Table, name: str, key: str) -> tuple[str, dict[str, Any]]:
    """The call that shows whether an action is allowed: its operation and parameters."""
    action, _, index = action.partition("/")
    row = {attribute: {"S": key} for attribute in table.key.attributes}
    unmet = {
        "TableName": name,
        "ConditionExpression": "attribute_exists(#k)",
        "ExpressionAttributeNames": {"#k": table.key.partition},
    }
    queried = table.indexes[index] if index else table.key
    # A batch takes no condition: deleting a row that is not there changes nothing.
    deletion = {"DeleteRequest": {"Key": row}}
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "GetItem": ("get_item", {"TableName": name, "Key": row}),
        "BatchGetItem": ("batch_get_item", {"RequestItems": {name: {"Keys": [row]}}}),
        "PutItem": ("put_item", {"Item": row, **unmet}),
        "UpdateItem": ("update_item", {"Key": row, **unmet}),
        "DeleteItem": ("delete_item", {"Key": row, **unmet}),
        "BatchWriteItem": ("batch_write_item", {"RequestItems": {name: [deletion]}}),
        "ConditionCheckItem": (
            "transact_write_items",
            {"TransactItems": [{"ConditionCheck": {"Key": row, **unmet}}]},
        ),
        "Scan": ("scan", {"TableName": name, "Limit": 1}),
        "Query": (
            "query",
            {
                "TableName": name,
                **({"IndexName": index} if index else {}),
                "KeyConditionExpression": "#k = :k",
                "ExpressionAttributeNames": {"#k": queried.partition},
                "ExpressionAttributeValues": {":k": {"S": key}},
                "Limit": 1,
            },
        ),
    }
    return requests[action]
