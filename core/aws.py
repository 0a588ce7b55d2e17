"""AWS clients: sessions, configuration, opening, and what botocore's own errors mean."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from copy import copy
from functools import cache
from typing import Any, Final

import aioboto3
import aiobotocore
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as ConnectionFailed
from botocore.loaders import create_loader

from core.aws_calls import count_attempt
from core.errors import AlreadyExists, Corrupt, K9Error, NotFound, Unavailable
from core.settings import Settings

_NO_CREDENTIALS: Final = (
    "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
    "AWS_PROFILE, or give the process a role"
)
DENIED: Final = frozenset(
    {"403", "AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation"}
)
"""Codes of errors: the caller lacks the right."""
UNACCEPTED: Final = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
"""Codes of errors: AWS does not accept the credentials or the signature."""
REFUSED: Final = DENIED | UNACCEPTED
_OPEN_DEADLINE_S: Final = 20.0
"""For creating a client: reading botocore's models, and asking for a role's credentials."""


def raise_unavailable(error: BotoCoreError, service: str) -> None:
    """Translates an error of botocore's own; returns where it is a mistake of ours.

    Raises:
        Unavailable: there are no credentials, or the service could not be reached.
    """
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        detail = _NO_CREDENTIALS
    elif isinstance(error, CredentialRetrievalError):
        detail = f"AWS credentials could not be obtained: {error}"
    elif isinstance(error, ConnectionFailed | HTTPClientError | ClientClosed):
        # The message of the error has the endpoint's address, which callers must not see.
        detail = f"{service} could not be reached: {type(error).__name__}"
    else:
        return
    raise Unavailable(detail, public=public_message(service)) from error


def public_message(service: str) -> str:
    """The message for callers about a service that K9 could not use."""
    return f"{service} could not be used; try again"


def client_config(settings: Settings, *, read_timeout_s: float | None = None) -> AioConfig:
    """The configuration of botocore for a client of K9's, of DynamoDB or another service."""
    aws = settings.aws
    return AioConfig(
        region_name=aws.region,
        connect_timeout=aws.connect_timeout_s,
        read_timeout=read_timeout_s or aws.read_timeout_s,
        max_pool_connections=aws.pool_connections,
        retries={"mode": "standard", "total_max_attempts": aws.attempts_max},
        # botocore would check each value against its model, a second walk over every row sent;
        # DynamoDB reports a wrong request just as clearly.
        parameter_validation=False,
        # Looking up the account's own endpoint needs the account of the credentials; a process
        # that has none would ask for it.
        account_id_endpoint_mode="disabled",
        # Otherwise botocore composes it for each request, which is an eighth of the processor
        # time of a small one.
        user_agent=f"k9 aiobotocore/{aiobotocore.__version__}",
    )


def new_session() -> aioboto3.Session:
    """A session with AWS's chain of credentials."""
    session = AioSession()
    session.register_component("data_loader", _models(session.get_config_variable("data_path")))
    return aioboto3.Session(botocore_session=session)


@cache
def _models(data_path: str | None) -> Any:
    """The models of AWS's services, decoded once a process and not once a session."""
    return create_loader(data_path)


class ClientClosed(BotoCoreError):  # type: ignore[misc] # botocore has no types
    """A client was used after its end. No other attempt is made."""

    fmt = "the client is closed"


class _Connections(AIOHTTPSession):  # type: ignore[misc] # aiobotocore has no types
    """The connections of a client; aiobotocore's open again after their end, and stay open."""

    closed = False

    async def send(self, request: Any) -> Any:
        """The response to a request.

        Raises:
            ClientClosed: they are closed.
            HTTPClientError: the request failed.
        """
        if self.closed:
            raise ClientClosed
        return await super().send(request)

    async def __aexit__(self, *error: object) -> None:
        self.closed = True
        await super().__aexit__(*error)


@asynccontextmanager
async def open_client(
    session: aioboto3.Session, service: str, config: AioConfig, endpoint_url: str | None
) -> AsyncIterator[Any]:
    """A low-level client, closed at the end.

    Creating one reads botocore's models from disk and decodes them, 50 to 200 ms, and may ask for
    credentials over the network. All that happens in a thread with an event loop of its own; the
    client's connections are opened later, on the caller's loop.

    Raises:
        Unavailable: no client could be made in time.
    """
    config = copy(config)
    config.http_session_cls = _Connections

    async def create() -> Any:
        context = session.client(service, config=config, endpoint_url=endpoint_url)
        async with asyncio.timeout(_OPEN_DEADLINE_S):
            return await context.__aenter__()

    opening = asyncio.ensure_future(asyncio.to_thread(lambda: asyncio.run(create())))
    try:
        client = await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread goes on; what it opens has no other owner.
        await _ended(opening)
        if not opening.cancelled() and opening.exception() is None:
            await _closed(opening.result())
        raise
    except TimeoutError:
        raise Unavailable(f"no client of {service} could be made in time") from None
    except BotoCoreError as error:
        raise_unavailable(error, service)
        raise
    client.meta.events.register("response-received", count_attempt)
    try:
        yield client
    finally:
        await _closed(client)


async def _closed(client: Any) -> None:
    """Closes a client to the end, also where its user is cancelled meanwhile."""
    closing = asyncio.ensure_future(client.__aexit__(None, None, None))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await _ended(closing)
        raise


async def _ended(future: "asyncio.Future[Any]") -> None:
    """Waits for the end of it, however often the waiting task is cancelled."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({future})


_MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})
_EXISTS: Final = frozenset({"412", "PreconditionFailed"})
_DAMAGED: Final = frozenset({"BadDigest", "XAmzContentChecksumMismatch"})
_CONFLICT: Final = "ConditionalRequestConflict"


def object_error(error: ClientError, subject: str, bucket: str) -> K9Error | None:
    """The one table from S3's errors to K9's; None for an unexpected one."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return Unavailable(
            f"S3 has no bucket {bucket} (`k9 tables create` makes the one of an environment)",
            public="a bucket is missing in S3; an operator has to create it",
        )
    known: tuple[tuple[bool, type[K9Error], str], ...] = (
        (code in _MISSING, NotFound, f"there is no object {subject}"),
        (code in _EXISTS, AlreadyExists, f"another object {subject} is there already"),
        (code in _DAMAGED, Corrupt, f"object {subject} arrived as other bytes"),
        (code == "InvalidRange", Corrupt, f"object {subject} is shorter than it should be"),
        (code in REFUSED, Unavailable, f"S3 refused K9's AWS credentials: {code}"),
        (code in {_CONFLICT, "SlowDown"}, Unavailable, f"S3 is busy: {code}"),
        (status >= 500, Unavailable, f"S3 failed: {code}"),  # noqa: PLR2004 - HTTP's own
    )
    return next((kind(message) for matches, kind, message in known if matches), None)
