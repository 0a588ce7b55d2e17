"""Replicas of an environment's tables in other regions, for recovery: one region alone writes.

K9's leases, idempotency keys and publications are conditional writes, which global tables check
against the region that is written to: a second region that wrote at the same time would run a build
or a request twice. DynamoDB makes a table of `data.yaml` a global one in place, with its rows;
CloudFormation could only do that by importing it as a resource of another type.
"""

from typing import Any, Final

import msgspec

from core.dynamo import tables
from core.retry import RetryPolicy
from core.settings import Settings
from deploy.aws.clients import open_client
from deploy.aws.tables import describe_table, has_recovery, recovery_of
from deploy.callbacks import MessageCallback
from deploy.errors import CommandError

_POLL: Final = RetryPolicy(first_s=0.1, max_s=10.0, jitter=0.0)
_WAIT_S: Final = 6 * 3600.0
"""A large table is copied for hours."""


async def ensure_replicas(
    settings: Settings, regions: tuple[str, ...], message: MessageCallback
) -> None:
    """Makes sure that every table has a replica in each region, with point-in-time recovery.

    The tables need their streams, by the parameter `Streams` of data.yaml. What is there is left.

    Raises:
        CommandError: DynamoDB does not make a replica.
    """
    async with open_client("dynamodb", settings) as client:
        for table in tables.ALL:
            name = settings.table(table.name)
            for region in regions:
                if region not in await replica_states(client, name):
                    message(f"{name}: making a replica in {region}")
                    update = {"Create": {"RegionName": region}}
                    await client.update_table(TableName=name, ReplicaUpdates=[update])
                    # DynamoDB changes one replica of a table at a time.
                    await _wait(client, name, region)
    for region in regions:
        await _ensure_recovery(settings, region, message)


async def replica_states(client: Any, name: str) -> dict[str, str]:
    """The status of each replica of a table in another region, by that region."""
    own = client.meta.region_name
    table = await describe_table(client, name)
    if table is None:
        raise CommandError(f"table {name} does not exist")
    return {
        replica["RegionName"]: str(replica.get("ReplicaStatus", "ACTIVE"))
        for replica in table.get("Replicas") or ()
        if replica["RegionName"] != own
    }


async def _wait(client: Any, name: str, region: str) -> None:
    status = "CREATING"
    async for _ in _POLL.attempts(within_s=_WAIT_S):
        status = (await replica_states(client, name)).get(region, "CREATING")
        if status == "ACTIVE":
            return
        if status not in {"CREATING", "UPDATING"}:
            break
    raise CommandError(f"the replica of {name} in {region} is {status.lower()}")


async def _ensure_recovery(settings: Settings, region: str, message: MessageCallback) -> None:
    """A replica does not take over point-in-time recovery from its table."""
    aws = msgspec.structs.replace(settings.aws, region=region)
    async with open_client("dynamodb", msgspec.structs.replace(settings, aws=aws)) as client:
        for table in tables.ALL:
            name = settings.table(table.name)
            if not has_recovery(await recovery_of(client, name)):
                message(f"{name} in {region}: point-in-time recovery turned on")
                await client.update_continuous_backups(
                    TableName=name,
                    PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True},
                )
