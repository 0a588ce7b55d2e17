"""Clients of AWS's control side (CloudFormation, Cognito, table settings), with errors in one line.

Rows go through `core.dynamo`; what is here runs once in a while, so the stock client will do.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from botocore.exceptions import NoCredentialsError as MissingCredentials

from core.aws import new_session
from core.settings import Settings
from deploy.errors import CommandError

T = TypeVar("T")

_ENDPOINTS = {"dynamodb": "endpoint_url_dynamodb", "s3": "endpoint_url_s3"}


@asynccontextmanager
async def open_client(service: str, settings: Settings) -> AsyncIterator[Any]:
    """A client of one AWS service; whatever goes wrong inside leaves as a `CommandError`.

    Raises:
        CommandError: for any failure of AWS that the caller did not handle.
    """
    aws = settings.aws
    override = getattr(aws, _ENDPOINTS[service]) if service in _ENDPOINTS else None
    config = Config(
        connect_timeout=aws.connect_timeout_s,
        # Control calls answer slowly, the emulator's most of all while it writes.
        read_timeout=30,
        max_pool_connections=16,
        retries={"mode": "standard", "total_max_attempts": aws.attempts_max},
    )
    try:
        async with new_session().client(
            service,
            region_name=aws.region,
            endpoint_url=override or aws.endpoint_url,
            config=config,
        ) as client:
            yield client
    except ClientError as error:
        raise CommandError(f"{service}: {code_of(error)}: {message_of(error)}") from error
    except MissingCredentials as error:
        raise CommandError(
            "no AWS credentials found: set AWS_PROFILE, or start the embedded stack with `k9 dev`"
        ) from error
    except EndpointConnectionError as error:
        raise CommandError(f"{service}: nothing answers at its address: {error}") from error
    except BotoCoreError as error:
        raise CommandError(f"{service}: {error}") from error


async def together(*calls: Coroutine[Any, Any, T]) -> list[T]:
    """What the calls come to, in their order; the first to fail ends the others.

    Unlike `asyncio.gather`, none goes on behind the back of a client that is being closed.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def code_of(error: ClientError) -> str:
    """AWS's code of an error: `ValidationError`."""
    return str(error.response.get("Error", {}).get("Code", "Unknown"))


def message_of(error: ClientError) -> str:
    """AWS's words on an error, on one line."""
    return " ".join(str(error.response.get("Error", {}).get("Message", error)).split())
