"""Clients of AWS's control planes (CloudFormation, Cognito, table settings), with one-line errors.

Rows go through `core.dynamo`. These calls are rare, so aioboto3's own client is fast enough.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from botocore.exceptions import NoCredentialsError as MissingCredentials

from core.aws import new_session
from core.settings import Settings
from deploy.errors import CommandError

_ENDPOINTS = {"dynamodb": "endpoint_url_dynamodb", "s3": "endpoint_url_s3"}


@asynccontextmanager
async def open_client(service: str, settings: Settings) -> AsyncIterator[Any]:
    """A client of one AWS service.

    Raises:
        CommandError: for any AWS error that the block does not handle.
    """
    aws = settings.aws
    override = getattr(aws, _ENDPOINTS[service]) if service in _ENDPOINTS else None
    config = Config(
        connect_timeout=aws.connect_timeout_s,
        # Control-plane calls are slow, the emulator's most of all while it writes its state.
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
        raise CommandError(f"{service}: nothing listens at its address: {error}") from error
    except BotoCoreError as error:
        raise CommandError(f"{service}: {error}") from error


def code_of(error: ClientError) -> str:
    """AWS's code of an error: `ValidationException`."""
    return str(error.response.get("Error", {}).get("Code", "Unknown"))


def message_of(error: ClientError) -> str:
    """AWS's message of an error, on one line."""
    return " ".join(str(error.response.get("Error", {}).get("Message", error)).split())
