"""A Cognito user pool with K9's groups, and access tokens from it, for the embedded stack."""

from typing import Any

import msgspec
from botocore.exceptions import ClientError

from core.settings import Settings
from deploy.aws.clients import code_of, open_client

POOL = "k9"
CLIENT = "k9-cli"
GROUPS = ("readers", "operators")
TOKEN_HOURS = 24
"""The longest that Cognito allows for an access token."""
_ACCESS = {
    # Signed with the pool owner's credentials, unlike ALLOW_USER_PASSWORD_AUTH.
    "ExplicitAuthFlows": ["ALLOW_ADMIN_USER_PASSWORD_AUTH", "ALLOW_REFRESH_TOKEN_AUTH"],
    "AccessTokenValidity": TOKEN_HOURS,
    "TokenValidityUnits": {"AccessToken": "hours"},
}


class UserPool(msgspec.Struct, frozen=True):
    """A user pool, and what its tokens are verified with."""

    pool_id: str
    client_id: str
    issuer: str
    """`iss` of its tokens: the pool's address at AWS, on the embedded stack too."""
    jwks_url: str


async def ensure_pool(settings: Settings) -> UserPool:
    """The pool named `k9` with its app client and groups; what is missing is created.

    Raises:
        CommandError: Cognito did not answer.
    """
    async with open_client("cognito-idp", settings) as client:
        pools = client.get_paginator("list_user_pools").paginate(PaginationConfig={"PageSize": 60})
        pool = await anext(pools.search(f"UserPools[?Name=='{POOL}']"), None)
        if pool is None:
            pool = (await client.create_user_pool(PoolName=POOL))["UserPool"]
        pool_id = pool["Id"]
        access = {"UserPoolId": pool_id, "ClientName": CLIENT, **_ACCESS}
        clients = client.get_paginator("list_user_pool_clients").paginate(UserPoolId=pool_id)
        app = await anext(clients.search(f"UserPoolClients[?ClientName=='{CLIENT}']"), None)
        if app is None:
            app = (await client.create_user_pool_client(**access))["UserPoolClient"]
        else:  # it may be of an earlier release
            await client.update_user_pool_client(ClientId=app["ClientId"], **access)
        await create_groups(client, pool_id)
    region = settings.aws.region
    return UserPool(
        pool_id=pool_id,
        client_id=app["ClientId"],
        issuer=f"https://cognito-idp.{region}.amazonaws.com/{pool_id}",
        jwks_url=f"{settings.aws.endpoint_url}/{pool_id}/.well-known/jwks.json",
    )


async def fetch_token(
    settings: Settings, *, pool_id: str, client_id: str, user: str, password: str, operator: bool
) -> str:
    """An access token of a user, who is created if there is none of that name.

    The user is added to the group `operators` or removed from it, depending on `operator`.

    Raises:
        CommandError: Cognito did not issue one.
    """
    async with open_client("cognito-idp", settings) as client:
        try:
            await client.admin_get_user(UserPoolId=pool_id, Username=user)
        except ClientError as error:
            if code_of(error) != "UserNotFoundException":
                raise
            await _create_user(client, pool_id, user, password)
        move = client.admin_add_user_to_group if operator else client.admin_remove_user_from_group
        await move(UserPoolId=pool_id, Username=user, GroupName="operators")
        asked = {
            "UserPoolId": pool_id,
            "ClientId": client_id,
            "AuthFlow": "ADMIN_USER_PASSWORD_AUTH",
            "AuthParameters": {"USERNAME": user, "PASSWORD": password},
        }
        reply: dict[str, Any] = {}
        try:
            reply = await client.admin_initiate_auth(**asked)
        except ClientError as error:
            if code_of(error) != "NotAuthorizedException":
                raise
        # The password was made anew since, or the creation of the user was interrupted: then
        # Cognito may answer with a challenge to choose one.
        if "AuthenticationResult" not in reply:
            await _set_password(client, pool_id, user, password)
            reply = await client.admin_initiate_auth(**asked)
    return str(reply["AuthenticationResult"]["AccessToken"])


async def create_groups(client: Any, pool_id: str) -> None:
    """Creates the groups of K9's that a pool lacks."""
    for group in GROUPS:
        try:
            await client.create_group(UserPoolId=pool_id, GroupName=group)
        except ClientError as error:
            if code_of(error) != "GroupExistsException":
                raise


async def _create_user(client: Any, pool_id: str, user: str, password: str) -> None:
    try:
        await client.admin_create_user(UserPoolId=pool_id, Username=user, MessageAction="SUPPRESS")
    except ClientError as error:
        # Another command created the same user at the same moment.
        if code_of(error) != "UsernameExistsException":
            raise
    await _set_password(client, pool_id, user, password)


async def _set_password(client: Any, pool_id: str, user: str, password: str) -> None:
    await client.admin_set_user_password(
        UserPoolId=pool_id, Username=user, Password=password, Permanent=True
    )
