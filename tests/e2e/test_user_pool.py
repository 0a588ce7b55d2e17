"""Tokens of the embedded stack's user pool."""

from functools import partial

import pytest

from deploy.aws.clients import open_client
from deploy.aws.cognito import ensure_pool, fetch_token
from tests.emulators import settings_for


@pytest.mark.parametrize("operator", [False, True])
async def test_a_user_gets_a_token_by_a_new_password(ministack: str, *, operator: bool) -> None:
    """As after `secrets.json` was deleted, which the pool outlives; and with no password yet."""
    settings = settings_for(ministack)
    pool = await ensure_pool(settings)
    token = partial(
        fetch_token, settings, pool_id=pool.pool_id, client_id=pool.client_id, operator=operator
    )
    user = f"user-{operator}"
    assert await token(user=user, password="Aa1!of-before")
    assert await token(user=user, password="Aa1!of-after")
    half = f"half-{operator}"
    async with open_client("cognito-idp", settings) as client:
        await client.admin_create_user(
            UserPoolId=pool.pool_id, Username=half, MessageAction="SUPPRESS"
        )
    assert await token(user=half, password="Aa1!of-after")
