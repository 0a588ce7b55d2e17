"""The user pool that an environment is given: one pool, one environment.

A pool's tokens say nothing of an environment, so that a pool shared by two would let the callers of
one into the other. The pool is tagged with its environment, and one of another is refused.
"""

from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import ClientError

from core.settings import Settings
from deploy.aws.clients import code_of, open_client
from deploy.aws.cognito import create_groups
from deploy.errors import CommandError

TAG: Final = "k9:environment"
_NOT_FOUND: Final = {"ResourceNotFoundException", "InvalidParameterException"}


async def check_pool(settings: Settings, pool_id: str) -> None:
    """Checks that there is such a pool and that it is no other environment's.

    Raises:
        CommandError: it is not there, or another environment's; the message names it.
    """
    async with open_client("cognito-idp", settings) as client:
        pool = await _describe(client, settings, pool_id)
    _refuse_other(pool, settings)


async def claim_pool(settings: Settings, pool_id: str) -> None:
    """Tags the pool with the environment, and creates groups of K9's that it lacks.

    Groups are not the stack's: deleting it must not take the users out of them.

    Raises:
        CommandError: another environment has claimed it since `check_pool`.
    """
    async with open_client("cognito-idp", settings) as client:
        pool = await _describe(client, settings, pool_id)
        _refuse_other(pool, settings)
        if _owner(pool) != settings.environment:
            await client.tag_resource(ResourceArn=pool["Arn"], Tags={TAG: settings.environment})
        await create_groups(client, pool_id)


async def release_pool(settings: Settings, pool_id: str) -> None:
    """Removes the environment's tag from the pool; users and groups stay."""
    async with open_client("cognito-idp", settings) as client:
        pool = await _describe(client, settings, pool_id)
        if _owner(pool) == settings.environment:
            await client.untag_resource(ResourceArn=pool["Arn"], TagKeys=[TAG])


def _owner(pool: Mapping[str, Any]) -> str | None:
    return (pool.get("UserPoolTags") or {}).get(TAG)


def _refuse_other(pool: Mapping[str, Any], settings: Settings) -> None:
    owner = _owner(pool)
    if owner not in {None, settings.environment}:
        raise CommandError(
            f"the user pool {pool['Id']} is that of the environment {owner!r} (tag {TAG}): an "
            "environment needs a pool of its own"
        )


async def _describe(client: Any, settings: Settings, pool_id: str) -> dict[str, Any]:
    try:
        reply = await client.describe_user_pool(UserPoolId=pool_id)
    except ClientError as error:
        if code_of(error) in _NOT_FOUND:
            region, sign, _ = pool_id.partition("_")
            advice = "`aws cognito-idp list-user-pools --max-results 60` lists them"
            if sign and region != settings.aws.region:
                advice = f"by its id it is in {region}: set AWS_REGION"
            raise CommandError(
                f"there is no user pool {pool_id} in {settings.aws.region}: {advice}"
            ) from error
        raise
    pool: dict[str, Any] = reply["UserPool"]
    return pool
